"""``logit_edit`` on a CPU: one gather, one sum and one scatter over all live entries.

Reading the masks on the host is free here, and only here: this file never sees device tensors.
"""

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
    """The op, see `tokenlens_kernels.logit_edit`."""
    max_slots, max_edits = edit_ids.shape
    rows = ((slots >= 0) & (slots < max_slots)).nonzero().flatten()
    if rows.shape[0] == 0:
        return
    of_row = slots[rows]
    forced = forced_ids[of_row]
    is_forced = (forced >= 0) & (forced < vocab_size)

    ids, deltas = edit_ids[of_row], edit_deltas[of_row]
    live = torch.arange(max_edits) < edit_counts[of_row].unsqueeze(-1)
    live &= (ids >= 0) & (ids < vocab_size) & (deltas != 0.0) & ~is_forced.unsqueeze(-1)
    if bool(live.any()):
        # One key a (row, id), so that repeated ids are summed before they are rounded.
        keys = rows.unsqueeze(-1) * logits.shape[1] + ids
        cells, place = torch.unique(keys[live], return_inverse=True)
        sums = torch.zeros(cells.shape[0], dtype=torch.float64)
        sums.index_add_(0, place, deltas[live].double())
        row, column = cells // logits.shape[1], cells % logits.shape[1]
        logits[row, column] = (logits[row, column].float() + sums.float()).to(logits.dtype)
    if bool(is_forced.any()):
        logits.index_fill_(0, rows[is_forced], -torch.inf)
        logits[rows[is_forced], forced[is_forced]] = 0.0
