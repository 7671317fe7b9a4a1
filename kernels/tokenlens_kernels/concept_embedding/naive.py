"""What ``concept_embedding`` means: a mixture of one entry for plain tokens, else the plan's."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import philox
from ..concept_mixture import naive


def addition(plans: Tensor, *added: Tensor | None) -> Tensor:
    """``[len(plans), hidden]`` float32: what plans add to their mixtures."""
    vectors, rows, scale, seed, position = (t for t in added if t is not None)
    place = rows[plans]
    total = torch.where((place > 0).unsqueeze(-1), vectors[place], 0.0)
    if not bool((scale[plans] != 0.0).any()):
        return total
    index = torch.arange(vectors.shape[1], device=vectors.device)
    offset = philox.offset(position[plans].unsqueeze(-1), index, philox.NORMAL)
    deviation = scale[plans].unsqueeze(-1)
    draws = philox.normal(seed[plans].unsqueeze(-1), offset)
    return total + torch.where(deviation != 0.0, draws * deviation, 0.0)


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
    one = torch.ones((token_ids.shape[0], 1), device=table.device)
    plain = naive.concept_mixture(
        table, token_ids.unsqueeze(-1), one, scale, shard_start, out_dtype
    )
    if plan_ids.shape[0] == 0:
        return plain
    row = torch.where(latent, plan_row, 0)
    latent = (latent & plan_weights[row].isfinite().all(dim=1)).unsqueeze(-1)
    wide = torch.float32 if added and added[0] is not None else out_dtype
    mixed = naive.concept_mixture(table, plan_ids[row], plan_weights[row], scale, shard_start, wide)
    if added and added[0] is not None:
        mixed = (mixed + addition(row, *added)).to(out_dtype)
    return torch.where(latent, mixed, plain)
