"""Argument checks that the ops share: embedding tables, and pairs of ids and weights."""

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


def check_entries(
    ids_name: str, ids: Tensor, weights_name: str, weights: Tensor, dimensions: str
) -> None:
    """Raise ValueError unless ids are int64 of two dimensions and weights float32 of that shape."""
    if ids.dim() != 2 or ids.dtype != torch.int64:
        raise ValueError(
            f"{ids_name}: got shape {tuple(ids.shape)} and dtype {ids.dtype}, allowed is"
            f" {dimensions} of torch.int64"
        )
    if weights.shape != ids.shape or weights.dtype != torch.float32:
        raise ValueError(
            f"{weights_name}: got shape {tuple(weights.shape)} and dtype {weights.dtype}, allowed"
            f" is the shape of {ids_name}, {tuple(ids.shape)}, of torch.float32"
        )


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
