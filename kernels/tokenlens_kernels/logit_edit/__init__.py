"""Adds each request's deltas to the logits of its ids, and forces tokens, in one launch.

It does not know why a delta is what it is: schedules, penalties and budgets write their numbers
into the request's slot, and this op applies them to whatever row the request has at this step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._registration import register
from .._tables import check_entries

LOGIT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def logit_edit(
    # [num_rows, at least vocab_size]
    logits: Tensor,
    *,
    # [num_rows] int64
    slots: Tensor,
    # [max_slots, max_edits] int64
    edit_ids: Tensor,
    # [max_slots, max_edits] float32
    edit_deltas: Tensor,
    # [max_slots] int64
    edit_counts: Tensor,
    # [max_slots] int64
    forced_ids: Tensor,
    vocab_size: int,
) -> None:
    """Edit the logits in place.

    For a row whose slot is s: if ``forced_ids[s]`` is an id, every logit of the row becomes -inf
    (padding included) and the forced one 0. Otherwise the deltas of the first ``edit_counts[s]``
    entries are added to the logits of their ids; an id that comes several times gets the sum of its
    deltas, in float32, rounded once. A row without a slot, edits or a forced id is not written.

    Parameters
    ----------
    logits : Tensor
        [num_rows, at least vocab_size] float32, bfloat16 or float16, any row stride.
    slots : Tensor
        [num_rows] int64, the slot of each row, -1 for none.
    edit_ids, edit_deltas : Tensor
        [max_slots, max_edits] int64 and float32 (logits; -inf bans). Ids outside
        [0, vocab_size) and deltas of 0 are skipped.
    edit_counts : Tensor
        [max_slots] int64, 0 to max_edits.
    forced_ids : Tensor
        [max_slots] int64, -1 for none; ids outside [0, vocab_size) count as none.
    vocab_size : int
        Number of real columns.

    Raises
    ------
    ValueError
        If a shape or dtype is not as described. Values are not checked: they live on the device.
    """
    if logits.dim() != 2 or logits.dtype not in LOGIT_DTYPES:
        raise ValueError(
            f"logits: got shape {tuple(logits.shape)} and dtype {logits.dtype}, allowed is"
            f" [num_rows, vocabulary] of one of {LOGIT_DTYPES}"
        )
    if logits.stride(1) != 1 and logits.shape[1] > 1:
        raise ValueError(
            f"logits: got a column stride of {logits.stride(1)}, allowed is 1: the edit is in place"
        )
    if not 1 <= vocab_size <= logits.shape[1]:
        raise ValueError(
            f"vocab_size: got {vocab_size}, allowed is 1 to the width of logits, {logits.shape[1]}"
        )
    if tuple(slots.shape) != (logits.shape[0],) or slots.dtype != torch.int64:
        raise ValueError(
            f"slots: got shape {tuple(slots.shape)} and dtype {slots.dtype}, allowed is"
            f" [{logits.shape[0]}] of torch.int64 (one a row)"
        )
    check_entries("edit_ids", edit_ids, "edit_deltas", edit_deltas, "[max_slots, max_edits]")
    for name, tensor in (("edit_counts", edit_counts), ("forced_ids", forced_ids)):
        if tuple(tensor.shape) != (edit_ids.shape[0],) or tensor.dtype != torch.int64:
            raise ValueError(
                f"{name}: got shape {tuple(tensor.shape)} and dtype {tensor.dtype}, allowed is"
                f" [{edit_ids.shape[0]}] of torch.int64 (one a slot)"
            )
    torch.ops.tokenlens.logit_edit(
        logits, slots, edit_ids, edit_deltas, edit_counts, forced_ids, vocab_size
    )


def _cpu(*arguments: Any) -> None:
    from . import cpu

    cpu.logit_edit(*arguments)


def _device(*arguments: Any) -> None:
    from . import triton

    triton.logit_edit(*arguments)


def _fake(*arguments: Any) -> None:
    return None


register(
    "logit_edit(Tensor(a!) logits, Tensor slots, Tensor edit_ids, Tensor edit_deltas,"
    " Tensor edit_counts, Tensor forced_ids, SymInt vocab_size) -> ()",
    cpu=_cpu,
    device=_device,
    fake=_fake,
)
