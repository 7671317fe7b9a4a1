"""``concept_embedding`` on a CPU: a lookup, then mixtures written over the latent rows.

Reading the mask on the host is free here, and only here: this file never sees device tensors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..concept_mixture.cpu import concept_mixture
from .naive import addition

if TYPE_CHECKING:
    from torch import Tensor


def concept_embedding(
    token_ids: Tensor,
    plan_row: Tensor,
    plan_ids: Tensor,
    plan_weights: Tensor,
    table: Tensor,
    scale: float,
    shard_start: int,
    out_dtype: torch.dtype,
    *added: Tensor | None,
) -> Tensor:
    """The op, see `tokenlens_kernels.concept_embedding`."""
    latent = (plan_row >= 0) & (plan_row < plan_ids.shape[0])
    rows = latent.nonzero().flatten()
    if rows.shape[0]:
        latent[rows] = plan_weights[plan_row[rows]].isfinite().all(dim=1)
    local = token_ids - shard_start
    outside = (local < 0) | (local >= table.shape[0])
    unread = latent | outside
    if bool(unread.all()):
        out = table.new_zeros((token_ids.shape[0], table.shape[1]))
    else:
        out = table.index_select(0, local.masked_fill(unread, 0))
        if bool(unread.any()):
            out[unread] = 0.0
    if scale != 1.0:
        # In float32 before it is rounded, as a shard's partial sums need it.
        out = out.float() * scale
    out = out.to(out_dtype)
    rows = latent.nonzero().flatten()
    if rows.shape[0]:
        plans = plan_row[rows]
        adds = bool(added) and added[0] is not None
        wide = torch.float32 if adds else out_dtype
        mixed = concept_mixture(
            table, plan_ids[plans], plan_weights[plans], scale, shard_start, wide
        )
        if adds:
            mixed = (mixed + addition(plans, *added)).to(out_dtype)
        out.index_copy_(0, rows, mixed)
    return out
