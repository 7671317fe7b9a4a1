"""What ``signals_topk`` means, in plain torch: float64 inside, a full sort, no shortcuts.

The pure functions are written so that a method can use them with noise of its own. Nothing here
knows about seeds except `signals_topk` itself.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import philox

# Entries further beneath the maximum than this many nats are dead in every backend: their
# probability is below 2e-35, where backends would differ in how they treat denormal numbers.
LIVE_FLOOR = -80.0


def _normalise(values: Tensor) -> Tensor:
    # The floor only matters to a row without mass, which stays 0.
    return values / values.sum(-1, keepdim=True).clamp_min(torch.finfo(values.dtype).tiny)


def repeat_first_id(live: Tensor, ids: Tensor) -> Tensor:
    """Give dead entries the id of entry 0, so that every id is a valid address."""
    return torch.where(live, ids, ids[..., :1])


def filter_probabilities(
    sorted_probabilities: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor
) -> Tensor:
    """Top-k, top-p and min-p, each followed by renormalisation.

    Parameters
    ----------
    sorted_probabilities : Tensor
        [num_rows, width] floating point, descending: the most probable entries of the full
        vocabulary, not renormalised.
    top_k : Tensor
        [num_rows] int64, 0 for off. Exactly that many entries stay, ties or not.
    top_p : Tensor
        [num_rows] floating point in (0, 1]. An entry stays if the mass strictly before it is at
        most ``top_p``; 1 is off.
    min_p : Tensor
        [num_rows] floating point. An entry stays if it is at least ``min_p`` times the largest.

    Returns
    -------
    Tensor
        [num_rows, width], same dtype; what was dropped is 0, the rest of a row sums to 1.

    Source: Soft Thinking (arXiv 2505.15778), the order and the inclusive top-p of its sampler.
    """
    p = sorted_probabilities
    rank = torch.arange(p.shape[-1], device=p.device)
    limit = top_k.unsqueeze(-1)
    # With top-k off the mass outside the window still counts for top-p, so nothing is renormalised.
    p = torch.where(limit > 0, _normalise(p.masked_fill(rank >= limit, 0.0)), p)

    mass_before = torch.zeros_like(p)
    mass_before[..., 1:] = p.cumsum(-1)[..., :-1]
    nucleus = top_p.unsqueeze(-1).to(p.dtype)
    p = _normalise(p.masked_fill((mass_before > nucleus) & (nucleus < 1.0), 0.0))

    return _normalise(p.masked_fill(p < min_p.unsqueeze(-1).to(p.dtype) * p[..., :1], 0.0))


def cut_and_renormalise(
    probabilities: Tensor, ids: Tensor, max_entries: Tensor
) -> tuple[Tensor, Tensor]:
    """Keep the first ``max_entries`` of each row.

    Parameters
    ----------
    probabilities : Tensor
        [num_rows, width] floating point, descending, dead entries 0.
    ids : Tensor
        [num_rows, width] int64.
    max_entries : Tensor
        [num_rows] int64, at least 1.

    Returns
    -------
    tuple of Tensor
        Weights that sum to 1 (a single live entry has exactly 1.0) and ids, dead entries with
        weight 0 and the id of entry 0.
    """
    rank = torch.arange(probabilities.shape[-1], device=probabilities.device)
    weights = _normalise(probabilities.masked_fill(rank >= max_entries.unsqueeze(-1), 0.0))
    return weights, repeat_first_id(weights > 0, ids)


def gumbel_softmax(
    weights: Tensor, ids: Tensor, gumbel: Tensor, temperature: Tensor
) -> tuple[Tensor, Tensor]:
    """``softmax((log(weights) + gumbel) / temperature)`` over the live entries, sorted again.

    Parameters
    ----------
    weights : Tensor
        [num_rows, width] floating point, dead entries 0.
    ids : Tensor
        [num_rows, width] int64.
    gumbel : Tensor
        [num_rows, width] the noise of each entry; what it holds at dead entries does not matter.
    temperature : Tensor
        [num_rows] float; rows with 0 are returned as they came.

    Returns
    -------
    tuple of Tensor
        Weights and ids, descending, ties in the order in which they came.

    Source: Randomized Soft Thinking (arXiv 2508.03440), noise after the cut to K entries.
    """
    tau = temperature.unsqueeze(-1).to(weights.dtype)
    noisy = tau > 0
    scores = (weights.log() + gumbel.to(weights.dtype)) / torch.where(noisy, tau, 1.0)
    scores = torch.where(weights > 0, scores, -torch.inf)
    highest = scores.amax(-1, keepdim=True)
    shifted = scores - torch.where(highest.isfinite(), highest, 0.0)
    noised = _normalise(torch.where(shifted >= LIVE_FLOOR, shifted.exp(), 0.0))
    noised, order = torch.sort(noised, dim=-1, descending=True, stable=True)
    noised_ids = repeat_first_id(noised > 0, ids.gather(-1, order))
    return torch.where(noisy, noised, weights), torch.where(noisy, noised_ids, ids)


def signals_topk(
    logits: Tensor,
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The op, see `tokenlens_kernels.signals_topk`; the statistics cost no pass here."""
    z = logits[:, :vocab_size].to(torch.float32)
    highest = z.amax(-1)
    # The maximum is NaN if any logit is, +inf if any is, -inf if none is finite.
    valid = highest.isfinite()
    computed = active & valid
    z = torch.where(computed.unsqueeze(-1), z, 0.0)
    highest = torch.where(computed, highest, 0.0)

    # The tempered logit is defined in float32, so that every backend starts from the same numbers.
    shifted = ((z - highest.unsqueeze(-1)) * inverse_temperature.unsqueeze(-1)).to(torch.float64)
    mass = shifted.exp()
    total = mass.sum(-1)
    logsumexp = highest.double() * inverse_temperature.double() + total.log()
    entropy = total.log() - torch.where(mass > 0, mass * shifted, 0.0).sum(-1) / total

    order = torch.sort(z, dim=-1, descending=True, stable=True).indices[:, :width]
    probabilities = (mass / total.unsqueeze(-1)).gather(-1, order)
    probabilities = torch.where(shifted.gather(-1, order) >= LIVE_FLOOR, probabilities, 0.0)
    probabilities = filter_probabilities(probabilities, top_k, top_p, min_p)
    ids = repeat_first_id(probabilities > 0, order)

    weights, weight_ids = cut_and_renormalise(probabilities, ids, max_entries)
    counter = philox.offset(position.unsqueeze(-1), weight_ids, philox.GUMBEL)
    gumbel = philox.gumbel(seed.unsqueeze(-1), counter)
    weights, weight_ids = gumbel_softmax(weights, weight_ids, gumbel, noise_temperature)

    # Whatever the parameters were, no weight leaves that is not a number.
    mass_of_weights = weights.sum(-1)
    computed = computed & (mass_of_weights > 0.5) & (mass_of_weights < 1.5) & entropy.isfinite()
    per_row = computed.unsqueeze(-1)
    logsumexp = torch.where(computed, logsumexp.float(), torch.where(active, torch.nan, 0.0))
    return (
        logsumexp,
        torch.where(computed, entropy.float(), 0.0),
        torch.where(computed, (1.0 / total).float(), 0.0),
        torch.where(per_row, probabilities.float(), 0.0),
        torch.where(per_row, ids, 0),
        torch.where(per_row, weights.float(), 0.0),
        torch.where(per_row, weight_ids, 0),
    )
