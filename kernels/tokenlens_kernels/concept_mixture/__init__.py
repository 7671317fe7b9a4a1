"""Weighted sums of rows of an embedding table: ``sum_k weights[k] * table[ids[k]]``.

This file checks arguments and registers ``tokenlens::concept_mixture`` and its out-variant; what
they compute is in ``naive.py``. It does not know where the weights come from or what reads the sum.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._registration import on_cpu, register
from .._tables import check_entries, check_out, check_table


def concept_mixture(
    # [shard_size, hidden]
    table: Tensor,
    # [num_rows, width] int64
    ids: Tensor,
    # [num_rows, width] float32
    weights: Tensor,
    *,
    scale: float = 1.0,
    shard_start: int = 0,
    out_dtype: torch.dtype | None = None,
    # [num_rows, hidden]
    out: Tensor | None = None,
) -> Tensor:
    """Mix the embeddings of each row's entries, accumulating in float32.

    A row with one live entry of weight 1.0 is ``table[id]`` bit for bit (``table[id] * scale`` with
    a scale; on devices, the sign of a zero aside), so latent and discrete rows can share a call. A
    row's result does not depend on the other rows.

    Parameters
    ----------
    table : Tensor
        [shard_size, hidden] float32, bfloat16 or float16; the rows ``shard_start`` to
        ``shard_start + shard_size`` of the embedding table. The last dimension is contiguous.
    ids : Tensor
        [num_rows, width] int64, ids of the whole vocabulary. Ids outside the shard add nothing.
    weights : Tensor
        [num_rows, width] float32. Entries of weight 0 are never read, whatever their id. Weights
        are taken as they are, not renormalised.
    scale : float
        Multiplies the sum in float32, as models with scaled embeddings need. Pass the value that
        the model multiplies by, already rounded to the table's dtype if the model rounds it.
    shard_start : int
        First id of the shard.
    out_dtype : torch.dtype or None
        float32 for the partial sums of a shard, to be added over shards before rounding; None for
        the table's dtype.
    out : Tensor or None
        [num_rows, hidden] contiguous, written in place at its address (for graph capture); its
        dtype is the table's or float32, and ``out_dtype``, if given, must agree with it.

    Returns
    -------
    Tensor
        [num_rows, hidden]; ``out`` if it was given.

    Raises
    ------
    ValueError
        If a shape or dtype is not as described.
    """
    check_table(table)
    check_entries("ids", ids, "weights", weights, "[num_rows, width]")
    check_out(table, ids.shape[0], out_dtype, out)
    if out is None and on_cpu(table):
        with torch.no_grad():
            return _cpu(table, ids, weights, scale, shard_start, out_dtype)
    if out is None:
        result: Tensor = torch.ops.tokenlens.concept_mixture(
            table, ids, weights, scale, shard_start, out_dtype
        )
        return result
    torch.ops.tokenlens.concept_mixture_out(table, ids, weights, scale, shard_start, out)
    return out


def _with_dtype(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return *arguments[:-1], arguments[-1] or arguments[0].dtype


def _cpu(*arguments: Any) -> Tensor:
    from . import cpu

    return cpu.concept_mixture(*_with_dtype(arguments))


def _cpu_out(*arguments: Any) -> None:
    *inputs, out = arguments
    out.copy_(_cpu(*inputs, out.dtype))


def _device(*arguments: Any) -> Tensor:
    from . import triton

    return triton.concept_mixture(*_with_dtype(arguments))


def _device_out(*arguments: Any) -> None:
    from . import triton

    triton.concept_mixture_out(*arguments)


def _fake(table: Tensor, ids: Tensor, *arguments: Any) -> Tensor:
    return table.new_empty((ids.shape[0], table.shape[1]), dtype=arguments[-1] or table.dtype)


def _fake_out(*arguments: Any) -> None:
    return None


_INPUTS = "Tensor table, Tensor ids, Tensor weights, float scale, SymInt shard_start"

register(
    f"concept_mixture({_INPUTS}, ScalarType? out_dtype) -> Tensor",
    cpu=_cpu,
    device=_device,
    fake=_fake,
)
register(
    f"concept_mixture_out({_INPUTS}, Tensor(a!) out) -> ()",
    cpu=_cpu_out,
    device=_device_out,
    fake=_fake_out,
)
