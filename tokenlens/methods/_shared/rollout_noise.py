"""What noises with a log-probability have in common: columns, and how new weights are put in."""

import torch
from tokenlens_kernels import philox
from torch import Tensor

from tokenlens.core.columns import POSITION, SEED, Field
from tokenlens.core.method import Method
from tokenlens.core.proposal import Proposal, Signals
from tokenlens.core.rows import Rows

EPSILON = 1e-6

SCORED_FROM = -3.0
"""SofT-GRPO's log-probability is the mean over entries whose log weight is above this."""

# At most one method of this module is on for a request.
TAU = Field("rollout_noise.temperature", "float", 1.0)

SCALE = Field("rollout_noise.scale", "float", 1.0)

LOW = Field("rollout_noise.clamp_low", "float")

HIGH = Field("rollout_noise.clamp_high", "float")


def gumbel_log_density(noise: Tensor) -> Tensor:
    """Of standard Gumbel draws, elementwise."""
    return -noise - torch.exp(-noise)


def masked_mean(values: Tensor, where: Tensor) -> Tensor:
    """Over the last dimension; 0 where nothing counts."""
    total = torch.where(where, values, 0.0).sum(dim=-1)
    return total / where.sum(dim=-1).clamp(min=1)


def gumbel_of(rows: Rows, ids: Tensor) -> Tensor:
    place = philox.offset(rows[POSITION][:, None], ids, philox.GUMBEL)
    return philox.gumbel(rows[SEED][:, None], place)


def take(
    method: Method,
    rows: Rows,
    signals: Signals,
    proposal: Proposal,
    weights: Tensor,
    ids: Tensor,
    scores: Tensor,
    on: Tensor | None = None,
) -> None:
    """Sort new weights and put them into a method's rows."""
    on = (rows[method.on] if on is None else on) & signals.valid
    weights, order = weights.sort(dim=1, descending=True, stable=True)
    ids, scores = ids.gather(1, order), scores.gather(1, order)
    where = on[:, None]
    proposal.weights = torch.where(where, weights, proposal.weights)
    proposal.ids = torch.where(where, ids, proposal.ids)
    before = torch.zeros_like(scores) if proposal.scores is None else proposal.scores
    proposal.scores = torch.where(where, scores, before)
