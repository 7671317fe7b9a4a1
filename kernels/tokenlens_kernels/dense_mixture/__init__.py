"""The exact full-vocabulary mixture ``softmax(logits * inverse_temperature) @ table``.

SwiReasoning and LEAD feed it at every latent step. The probabilities are made on the way into the
matrix product and never stored. It reads the whole table: where the top 64 entries will do,
`signals_topk` with `concept_mixture` reads a thousandth of it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._registration import register
from .._tables import check_out, check_table

LOGIT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def dense_mixture(
    # [num_rows, at least vocab_size]
    logits: Tensor,
    # [shard_size, hidden]
    table: Tensor,
    *,
    # [num_rows] bool
    active: Tensor,
    # [num_rows] float32
    inverse_temperature: Tensor,
    vocab_size: int,
    scale: float = 1.0,
    shard_start: int = 0,
    out_dtype: torch.dtype | None = None,
    # [num_rows, hidden]
    out: Tensor | None = None,
) -> Tensor:
    """Mix the whole vocabulary, accumulating in float32.

    Parameters
    ----------
    logits : Tensor
        [num_rows, at least vocab_size] float32, bfloat16 or float16, any row stride. Columns from
        ``vocab_size`` on are padding and are ignored.
    table : Tensor
        [shard_size, hidden] float32, bfloat16 or float16; the rows ``shard_start`` to
        ``shard_start + shard_size`` of the embedding table. Probabilities are those of the full
        vocabulary, so the partial sums of the shards add up.
    active : Tensor
        [num_rows] bool. Rows without it are zero.
    inverse_temperature : Tensor
        [num_rows] float32 in (0, 1e6].
    vocab_size : int
        Number of real columns.
    scale, out_dtype, out
        As in `concept_mixture`.

    Returns
    -------
    Tensor
        [num_rows, hidden]; ``out`` if it was given. Invalid rows (NaN, +inf, or no finite logit)
        are zero, and so are those whose temperature gives no finite mixture.

    Raises
    ------
    ValueError
        If a shape or dtype is not as described.
    """
    check_table(table)
    if logits.dim() != 2 or logits.dtype not in LOGIT_DTYPES:
        raise ValueError(
            f"logits: got shape {tuple(logits.shape)} and dtype {logits.dtype}, allowed is"
            f" [num_rows, vocabulary] of one of {LOGIT_DTYPES}"
        )
    if logits.stride(1) != 1 and logits.shape[1] > 1:
        raise ValueError(
            f"logits: got a column stride of {logits.stride(1)}, allowed is 1; call .contiguous()"
        )
    if not 1 <= vocab_size <= logits.shape[1]:
        raise ValueError(
            f"vocab_size: got {vocab_size}, allowed is 1 to the width of logits, {logits.shape[1]}"
        )
    if shard_start < 0:
        raise ValueError(f"shard_start: got {shard_start}, allowed is 0 or more")
    for name, tensor, dtype in (
        ("active", active, torch.bool),
        ("inverse_temperature", inverse_temperature, torch.float32),
    ):
        if tuple(tensor.shape) != (logits.shape[0],) or tensor.dtype != dtype:
            raise ValueError(
                f"{name}: got shape {tuple(tensor.shape)} and dtype {tensor.dtype}, allowed is"
                f" [{logits.shape[0]}] of {dtype} (one a row)"
            )
    check_out(table, logits.shape[0], out_dtype, out)
    if out is None:
        out = table.new_empty((logits.shape[0], table.shape[1]), dtype=out_dtype or table.dtype)
    torch.ops.tokenlens.dense_mixture_out(
        logits, table, active, inverse_temperature, vocab_size, scale, shard_start, out
    )
    return out


def _cpu_out(*arguments: Any) -> None:
    from . import cpu

    out = arguments[-1]
    arguments = (*arguments[:-1], out.dtype)
    out.copy_(cpu.dense_mixture(*arguments))


def _device_out(*arguments: Any) -> None:
    from . import triton

    triton.dense_mixture_out(*arguments)


def _fake_out(*arguments: Any) -> None:
    return None


register(
    "dense_mixture_out(Tensor logits, Tensor table, Tensor active, Tensor inverse_temperature,"
    " SymInt vocab_size, float scale, SymInt shard_start, Tensor(a!) out) -> ()",
    cpu=_cpu_out,
    device=_device_out,
    fake=_fake_out,
)
