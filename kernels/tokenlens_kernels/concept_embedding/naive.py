"""What ``concept_embedding`` means: a mixture of one entry for plain tokens, else the plan's."""

from __future__ import annotations

import torch
from torch import Tensor

from ..concept_mixture import naive


def concept_embedding(
    token_ids: Tensor,
    plan_row: Tensor,
    plan_ids: Tensor,
    plan_weights: Tensor,
    table: Tensor,
    scale: float,
    shard_start: int,
    out_dtype: torch.dtype,
) -> Tensor:
    """The op, see `tokenlens_kernels.concept_embedding`."""
    latent = (plan_row >= 0) & (plan_row < plan_ids.shape[0])
    one = torch.ones((token_ids.shape[0], 1), device=table.device)
    plain = naive.concept_mixture(
        table, token_ids.unsqueeze(-1), one, scale, shard_start, out_dtype
    )
    if plan_ids.shape[0] == 0:
        return plain
    row = torch.where(latent, plan_row, 0)
    latent = (latent & plan_weights[row].isfinite().all(dim=1)).unsqueeze(-1)
    mixed = naive.concept_mixture(
        table, plan_ids[row], plan_weights[row], scale, shard_start, out_dtype
    )
    return torch.where(latent, mixed, plain)
