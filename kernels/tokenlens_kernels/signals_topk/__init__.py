"""One pass over the logits: log-sum-exp, entropy, maximum, filtered top entries, concept weights.

This file checks arguments and registers the op ``tokenlens::signals_topk``; what it computes is in
``naive.py``. It does not know which request a row belongs to or what the weights are fed to.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._registration import on_cpu, register

MAX_WIDTH = 64
LOGIT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class TopKSignals(NamedTuple):
    """Facts about each row, all of them about ``softmax(logits * inverse_temperature)``."""

    # [num_rows] float32; of the tempered logits; NaN marks an invalid row, 0 an inactive one
    logsumexp: Tensor
    # [num_rows] float32; nats, full vocabulary, before any filter
    entropy: Tensor
    # [num_rows] float32
    max_probability: Tensor
    # [num_rows, width] float32; filtered, renormalised, descending, without noise; dead entries 0
    probabilities: Tensor
    # [num_rows, width] int64; dead entries repeat entry 0
    ids: Tensor
    # [num_rows, width] float32; cut to max_entries, renormalised, noised, descending; sum to 1
    weights: Tensor
    # [num_rows, width] int64; aligned with weights; dead entries repeat entry 0
    weight_ids: Tensor


_SCHEMA = (
    "signals_topk(Tensor logits, Tensor active, Tensor inverse_temperature, Tensor top_k,"
    " Tensor top_p, Tensor min_p, Tensor max_entries, Tensor noise_temperature, Tensor seed,"
    " Tensor position, SymInt vocab_size, int width, bool statistics=True)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)

_Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def signals_topk(
    logits: Tensor,
    *,
    active: Tensor,
    inverse_temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    max_entries: Tensor,
    noise_temperature: Tensor,
    seed: Tensor,
    position: Tensor,
    vocab_size: int,
    width: int,
    statistics: bool = True,
) -> TopKSignals:
    """Signals and concept weights of every row, with the row's own parameters.

    The order is that of Soft Thinking: temperature, top-k, renormalise, top-p, renormalise, min-p,
    renormalise, cut to ``max_entries``, renormalise, noise on the logarithms, sort. Equal logits
    are ordered by id, lower first. An entry more than 80 nats beneath the maximum is dead.

    Per-row values are on the device and are *not* checked here: they are validated where a request
    is admitted. Values outside the ranges below give unspecified numbers, never a wrong access.

    Parameters
    ----------
    logits : Tensor
        [num_rows, at least vocab_size] float32, bfloat16 or float16, any row stride. Columns from
        ``vocab_size`` on are padding and are ignored.
    active : Tensor
        [num_rows] bool. Rows without it are zero in every output.
    inverse_temperature : Tensor
        [num_rows] float32 in (0, 1e6]. 1e6 gives one-hot rows.
    top_k : Tensor
        [num_rows] int64, 0 for off, else 1 to width.
    top_p : Tensor
        [num_rows] float32 in [0, 1]. An entry stays if the mass before it is at most ``top_p``.
    min_p : Tensor
        [num_rows] float32 in [0, 1], relative to the largest probability after top-p.
    max_entries : Tensor
        [num_rows] int64, 1 to width.
    noise_temperature : Tensor
        [num_rows] float32; 0 for no noise, else tau of
        ``softmax((log(weights) + gumbel) / tau)``.
    seed, position : Tensor
        [num_rows] int64; the noise of entry ``id`` is
        ``philox.gumbel(seed, philox.offset(position, id, philox.GUMBEL))``.
    vocab_size : int
        Number of real columns.
    width : int
        Entries returned, 1 to 64, at most ``vocab_size``. With top-k off, what lies beyond the
        ``width`` most probable entries is cut, and the rest is renormalised.
    statistics : bool
        False where nobody reads ``logsumexp``, ``entropy`` and ``max_probability``: they may come
        back as 0 (the ``logsumexp`` of an invalid row is NaN all the same). A CPU then skips
        the passes over the vocabulary that they need; everything else keeps its bits.

    Returns
    -------
    Signals
        A row that holds NaN or +inf, or no finite logit, is invalid: its ``logsumexp`` is NaN and
        everything else 0. So is a row whose parameters give weights that are not finite.

    Raises
    ------
    ValueError
        If a shape, dtype or width is not as described.
    """
    per_row = {
        "active": (active, torch.bool),
        "inverse_temperature": (inverse_temperature, torch.float32),
        "top_k": (top_k, torch.int64),
        "top_p": (top_p, torch.float32),
        "min_p": (min_p, torch.float32),
        "max_entries": (max_entries, torch.int64),
        "noise_temperature": (noise_temperature, torch.float32),
        "seed": (seed, torch.int64),
        "position": (position, torch.int64),
    }
    if logits.dim() != 2:
        raise ValueError(
            f"logits: got {logits.dim()} dimensions, allowed is [num_rows, vocabulary]"
        )
    if logits.dtype not in LOGIT_DTYPES:
        raise ValueError(f"logits: got dtype {logits.dtype}, allowed are {LOGIT_DTYPES}")
    if logits.stride(1) != 1 and logits.shape[1] > 1:
        raise ValueError(
            f"logits: got a column stride of {logits.stride(1)}, allowed is 1; call .contiguous()"
        )
    shape, device = logits.shape[:1], logits.device
    for name, (tensor, dtype) in per_row.items():
        if tensor.shape != shape:
            raise ValueError(
                f"{name}: got shape {tuple(tensor.shape)}, allowed is [{shape[0]}] (one a row)"
            )
        if tensor.dtype != dtype:
            raise ValueError(f"{name}: got dtype {tensor.dtype}, allowed is {dtype}")
        if tensor.device != device:
            raise ValueError(
                f"{name}: got device {tensor.device}, allowed is that of logits, {device}"
            )
    if not 1 <= vocab_size <= logits.shape[1]:
        raise ValueError(
            f"vocab_size: got {vocab_size}, allowed is 1 to the width of logits, {logits.shape[1]}"
        )
    if not 1 <= width <= min(MAX_WIDTH, vocab_size):
        raise ValueError(
            f"width: got {width}, allowed is 1 to {min(MAX_WIDTH, vocab_size)}"
            " (64, and no more than vocab_size)"
        )
    arguments = [tensor for tensor, _ in per_row.values()]
    if on_cpu(logits):
        with torch.no_grad():
            return TopKSignals(*_cpu(logits, *arguments, vocab_size, width, statistics))
    outputs = torch.ops.tokenlens.signals_topk(logits, *arguments, vocab_size, width, statistics)
    return TopKSignals(*outputs)


def _cpu(*arguments: Any) -> _Outputs:
    from . import cpu

    return cpu.signals_topk(*arguments)


def _device(*arguments: Any) -> _Outputs:
    from . import triton

    return triton.signals_topk(*arguments)


def _fake(logits: Tensor, *arguments: Any) -> _Outputs:
    num_rows, width = logits.shape[0], arguments[10]
    return (
        logits.new_empty((num_rows,), dtype=torch.float32),
        logits.new_empty((num_rows,), dtype=torch.float32),
        logits.new_empty((num_rows,), dtype=torch.float32),
        logits.new_empty((num_rows, width), dtype=torch.float32),
        logits.new_empty((num_rows, width), dtype=torch.int64),
        logits.new_empty((num_rows, width), dtype=torch.float32),
        logits.new_empty((num_rows, width), dtype=torch.int64),
    )


register(_SCHEMA, cpu=_cpu, device=_device, fake=_fake)
