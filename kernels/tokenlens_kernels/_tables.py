"""Argument checks that the ops on embedding tables share."""

from __future__ import annotations

import torch
from torch import Tensor

TABLE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def check_table(table: Tensor) -> None:
    """Raise ValueError unless ``table`` is [shard_size, hidden] of an allowed dtype."""
    if table.dim() != 2 or table.stride(1) != 1:
        raise ValueError(
            f"table: got shape {tuple(table.shape)} with strides {tuple(table.stride())}, allowed"
            " is [shard_size, hidden] with a contiguous last dimension"
        )
    if table.dtype not in TABLE_DTYPES:
        raise ValueError(f"table: got dtype {table.dtype}, allowed are {TABLE_DTYPES}")


def check_out(
    table: Tensor, num_rows: int, out_dtype: torch.dtype | None, out: Tensor | None
) -> None:
    """Raise ValueError unless ``out_dtype`` and ``out`` can hold ``num_rows`` rows of the table."""
    if out_dtype not in (None, torch.float32, table.dtype):
        raise ValueError(
            f"out_dtype: got {out_dtype}, allowed are None, torch.float32 and the table's"
            f" {table.dtype}"
        )
    if out is None:
        return
    expected = (num_rows, table.shape[1])
    allowed = (table.dtype, torch.float32) if out_dtype is None else (out_dtype,)
    if tuple(out.shape) != expected or not out.is_contiguous() or out.dtype not in allowed:
        raise ValueError(
            f"out: got shape {tuple(out.shape)}, dtype {out.dtype}, strides {tuple(out.stride())},"
            f" allowed is a contiguous {expected} of {allowed}"
        )
