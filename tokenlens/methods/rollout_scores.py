"""Log-probabilities of recorded latent steps under a model's logits: what a trainer recomputes.

Given the logits that a rollout saw, each function gives the rollout's own log-probability; given
those of a newer policy, the ratio of the two is what policy gradients need. Differentiable.

``published`` differs from the default so:

==========================  ================================  =================================
what                        default                           ``published`` (authors' code)
==========================  ================================  =================================
Latent-GRPO's FlipGrad:     ``-f'(m)``: the gradient with     ``1 - exp(m)``: the gradient of
slope in a margin that is   its sign turned                   ``f(-m)``, bounded by 1
flipped
==========================  ================================  =================================

with ``f(m) = -m - exp(-m)``, the log-density of Gumbel noise. Both turn the same margins, and the
value is ``f(m)`` in both.
"""

from typing import Literal

import torch
from torch import Tensor

from tokenlens.methods._shared.rollout_noise import (
    EPSILON,
    SCORED_FROM,
    gumbel_log_density,
    masked_mean,
)


def soft_grpo_log_probability(
    logits: Tensor,
    ids: Tensor,
    scores: Tensor,
    *,
    temperature: float = 0.6,
    scale: float = 1.0,
    clamp_low: float = -1.5,
    clamp_high: float = 3.0,
) -> Tensor:
    """Of SofT-GRPO's noise (arXiv 2511.06411, eq. 9; the trainer's code).

    Parameters
    ----------
    logits
        ``[n, vocab]``: of the policy, at the positions of the steps.
    ids, scores
        ``[n, K]``: the recorded entries, -1 where there is none, and ``y``.
    temperature
        Of the concept weights in the rollout's ``soft_thinking``.
    scale, clamp_low, clamp_high
        Of the rollout's ``soft_grpo_noise``.

    Returns
    -------
    Tensor
        ``[n]``. The policy's probabilities are renormalised over the recorded entries; the filters
        are not applied again, because entries that they took out are not recorded.
    """
    live = ids >= 0
    chosen = (logits.float() / temperature).gather(1, ids.clamp(min=0))
    chosen = torch.where(live, chosen, -torch.inf)
    log_weights = torch.log(torch.softmax(chosen, dim=1) + EPSILON)
    noise = (scores - log_weights).clamp(scale * clamp_low, scale * clamp_high)
    return masked_mean(gumbel_log_density(noise), live & (log_weights > SCORED_FROM))


def latent_grpo_log_probability(
    logits: Tensor,
    ids: Tensor,
    scores: Tensor,
    advantage: Tensor | None = None,
    *,
    profile: Literal["default", "published"] = "default",
) -> Tensor:
    """Of Latent-GRPO's noise (arXiv 2604.27998).

    Parameters
    ----------
    logits, ids, scores
        As in :func:`soft_grpo_log_probability`.
    advantage
        ``[n]``: where it is not positive, margins below zero pull the other way (FlipGrad). The
        value is the same with and without it.
    profile
        The gradient of those margins: see the table above. The rollout's ``latent_grpo.profile``
        repeats the authors' training.
    """
    if profile not in ("default", "published"):
        raise ValueError(f"profile: got {profile!r}; allowed: 'default', 'published'")
    live = ids >= 0
    log_p = torch.log_softmax(logits.float(), dim=1).gather(1, ids.clamp(min=0))
    margin = torch.where(live, scores - log_p, 0.0)
    density = gumbel_log_density(margin)
    if advantage is not None:
        flips = (advantage <= 0)[:, None] & (margin < 0)
        turned = gumbel_log_density(-margin) if profile == "published" else -density
        # The value of the density, the gradient of the other one.
        flipped = density.detach() + (turned - turned.detach())
        density = torch.where(flips, flipped, density)
    return masked_mean(density, live)


def cot2_log_probability(logits: Tensor, ids: Tensor, scale_logits: bool = True) -> Tensor:
    """Of CoT2's draws (arXiv 2505.23648): their sum, or their mean where logits are not scaled.

    Parameters
    ----------
    logits, ids
        ``[n, vocab]`` and ``[n, K]``.
    scale_logits
        The rollout's ``cot2.scale_logits``.
    """
    count = ids.shape[1]
    log_p = torch.log_softmax(logits.float() / (count if scale_logits else 1), dim=1)
    chosen = log_p.gather(1, ids)
    return chosen.sum(dim=1) if scale_logits else chosen.mean(dim=1)


def gaussian_log_probability(fed: Tensor, mean: Tensor, sigma: Tensor | float) -> Tensor:
    """Of Soft Tokens' noise (arXiv 2509.19170, eq. 5), up to a constant of the width and sigma.

    Parameters
    ----------
    fed, mean
        ``[n, hidden]``: what was fed, and the policy's mixture without noise.
    sigma
        Of each coordinate.
    """
    return -((fed - mean) ** 2).sum(dim=1) / (2 * sigma**2)
