"""``concept_mixture`` on a processor: ``embedding_bag`` over the live entries only.

Reading the mask on the host is free here, and only here: this file never sees device tensors.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def concept_mixture(
    table: Tensor,
    ids: Tensor,
    weights: Tensor,
    scale: float,
    shard_start: int,
    out_dtype: torch.dtype,
) -> Tensor:
    """The op, see `tokenlens_kernels.concept_mixture`."""
    local = ids - shard_start if shard_start else ids
    if _all_read(local, weights, table.shape[0]):
        starts = torch.arange(ids.shape[0] + 1) * ids.shape[1]
        live_ids, live_weights = local.flatten(), weights.flatten()
    else:
        read = (weights != 0) & (local >= 0) & (local < table.shape[0])
        ends = read.sum(-1).cumsum(0)
        starts = torch.cat((ends.new_zeros(1), ends))
        live_ids, live_weights = local[read], weights[read]
    if table.dtype != torch.float32:
        # embedding_bag wants weights in the table's dtype and would round them; the live rows are
        # few, so they are widened instead.
        table = table.index_select(0, live_ids).to(torch.float32)
        live_ids = torch.arange(live_ids.shape[0])
    mixture = F.embedding_bag(
        live_ids,
        table,
        starts,
        mode="sum",
        per_sample_weights=live_weights,
        include_last_offset=True,
    )
    if scale != 1.0:
        mixture = mixture * scale
    return mixture.to(out_dtype)


def _all_read(local: Tensor, weights: Tensor, shard_size: int) -> bool:
    """Whether every entry is alive and in the shard, as in most steps: then nothing is masked."""
    if not local.numel() or not bool(weights.all()):
        return False
    lowest, highest = local.aminmax()
    return int(lowest) >= 0 and int(highest) < shard_size
