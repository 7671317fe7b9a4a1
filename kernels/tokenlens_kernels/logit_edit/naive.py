"""What ``logit_edit`` means: one row, one entry at a time."""

from __future__ import annotations

import torch
from torch import Tensor


def logit_edit(
    logits: Tensor,
    slots: Tensor,
    edit_ids: Tensor,
    edit_deltas: Tensor,
    edit_counts: Tensor,
    forced_ids: Tensor,
    vocab_size: int,
) -> None:
    """The op, see `tokenlens_kernels.logit_edit`; reads every value on the host."""
    max_slots, max_edits = edit_ids.shape
    for row, slot in enumerate(slots.tolist()):
        if not 0 <= slot < max_slots:
            continue
        forced = int(forced_ids[slot])
        if 0 <= forced < vocab_size:
            logits[row] = -torch.inf
            logits[row, forced] = 0.0
            continue
        sums: dict[int, float] = {}
        for k in range(min(int(edit_counts[slot]), max_edits)):
            token, delta = int(edit_ids[slot, k]), float(edit_deltas[slot, k])
            if 0 <= token < vocab_size and delta != 0.0:
                sums[token] = sums.get(token, 0.0) + delta
        for token, delta in sums.items():
            edited = logits[row, token].to(torch.float32) + torch.tensor(delta).to(torch.float32)
            logits[row, token] = edited.to(logits.dtype)
