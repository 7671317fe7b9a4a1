"""Latent-GRPO (arXiv 2604.27998): clamped Gumbel noise on all candidates, then the top entries.

The rest of it is Soft Thinking's step, with other settings. Not reproduced: the code uses the first
request's noise settings for the whole batch, and the end-of-thinking token of one model for all;
its candidates are the nucleus of the whole vocabulary, here of its 64 most probable tokens.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from tokenlens.core.columns import END_IDS, END_LENGTH, LOG_PROBABILITY, MAX_ENTRIES, Field, Value
from tokenlens.core.marker_columns import HOT, transitions
from tokenlens.core.method import Admission, Method
from tokenlens.core.proposal import Proposal, Signals
from tokenlens.core.rows import Rows
from tokenlens.methods._shared.rollout_noise import (
    HIGH,
    LOW,
    SCALE,
    TAU,
    gumbel_log_density,
    gumbel_of,
    masked_mean,
    take,
)
from tokenlens.methods.latent_grpo.config import LatentGrpo
from tokenlens.methods.soft_thinking.step import SOFT_THINKING
from tokenlens.spec.needs import Need
from tokenlens.spec.registry import AnyMethod

NUCLEUS = Field("latent_grpo.top_p", "float", 1.0)

SHIFT = Field("latent_grpo.shift", "float")


def candidates(log_probabilities: Tensor, top_p: Tensor, entries: Tensor) -> Tensor:
    """Entries that Latent-GRPO's noise may lift: the nucleus, and at least the first ones."""
    p = log_probabilities.exp()
    before = p.cumsum(dim=1) - p
    rank = torch.arange(p.shape[1], device=p.device)
    return (before < top_p[:, None]) | (rank < entries[:, None])


class LatentGrpoNoiseMethod(Method):
    """Latent-GRPO's noise on the candidates' log-probabilities."""

    def __init__(self) -> None:
        super().__init__("latent_grpo_noise", NUCLEUS, SHIFT)

    def serves(self, config: AnyMethod) -> bool:
        return isinstance(config, LatentGrpo) and config.noise != "none"

    def admit(self, config: AnyMethod, admission: Admission) -> Mapping[Field, Value]:
        assert isinstance(config, LatentGrpo)
        return {
            TAU: config.temperature,
            SCALE: config.noise_scale,
            LOW: config.clamp_low,
            HIGH: config.clamp_high,
            NUCLEUS: config.top_p,
            SHIFT: -config.clamp_low if config.noise == "one_sided" else 0.0,
        }

    def needs(self, config: AnyMethod) -> Need:
        return Need.SCORES | Need.STATISTICS

    def reweigh(self, rows: Rows, signals: Signals, proposal: Proposal) -> None:
        p = signals.probabilities
        assert signals.max_probability is not None
        # The op renormalises over its width; the maximum is of the whole vocabulary.
        whole = signals.max_probability / p[:, 0].clamp(min=1e-30)
        log_p = torch.log((p * whole[:, None]).clamp(min=1e-38))
        noise = gumbel_of(rows, signals.ids).clamp(rows[LOW][:, None], rows[HIGH][:, None])
        noise = (noise + rows[SHIFT][:, None]) * rows[SCALE][:, None]
        live = candidates(log_p, rows[NUCLEUS], rows[MAX_ENTRIES]) & (p > 0)
        scores = torch.where(live, log_p + noise, -torch.inf)
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        ids, noise = signals.ids.gather(1, order), noise.gather(1, order)
        rank = torch.arange(p.shape[1], device=p.device)
        kept = (rank < rows[MAX_ENTRIES][:, None]) & (scores > -torch.inf)
        masked = torch.where(kept, scores / rows[TAU][:, None], -torch.inf)
        # A row without signals has no entry at all.
        highest = masked.amax(dim=1, keepdim=True)
        weights = (masked - torch.where(highest.isfinite(), highest, 0.0)).exp()
        weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=1e-30)
        # Thinking that the model itself wants to end is not noised away.
        ends = signals.ids[:, 0] == rows[END_IDS][:, 0]
        if Need.LONG_MARKERS in rows.needs:
            # Merged with what stands before it, or after it, the end is another token.
            begins = (transitions(rows, signals.ids[:, :1])[:, 0] & HOT) > 0
            ends = ends | (begins & (rows[END_LENGTH] > 1))
        on = rows[self.on] & ~ends
        ids = torch.where(kept, ids, ids[:, :1])
        scores = torch.where(kept, scores, 0.0)
        take(self, rows, signals, proposal, weights, ids, scores, on)
        log_probability = masked_mean(gumbel_log_density(noise), kept)
        rows.choose(LOG_PROBABILITY, rows[self.on], torch.where(on, log_probability, 0.0))


STEPS = (SOFT_THINKING, LatentGrpoNoiseMethod())
