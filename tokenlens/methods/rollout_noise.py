"""Noise whose log-probability a trainer needs: SofT-GRPO, Latent-GRPO, CoT2, Soft Tokens.

SofT-GRPO (arXiv 2511.06411): clamped Gumbel noise on the logarithms of the concept weights.
Latent-GRPO (arXiv 2604.27998): clamped Gumbel noise on all candidates, then the top entries.
CoT2 (arXiv 2505.23648): tokens drawn with replacement, averaged. Soft Tokens (arXiv 2509.19170):
Gaussian noise on what is fed, which the engine adds.

Not reproduced: SofT-GRPO's and Latent-GRPO's code use the first request's noise settings for the
whole batch, and the end-of-thinking token of one model for all; Latent-GRPO's candidates are the
nucleus of the whole vocabulary, here of its 64 most probable tokens.
"""

from collections.abc import Mapping

import torch
from tokenlens_kernels import philox
from torch import Tensor

from tokenlens.core.columns import (
    END_IDS,
    END_LENGTH,
    INVERSE_TEMPERATURE,
    LOG_PROBABILITY,
    MAX_ENTRIES,
    NOISE_SCALE,
    POSITION,
    SEED,
    Field,
    Value,
)
from tokenlens.core.marker_columns import HOT, transitions
from tokenlens.core.method import Admission, Method
from tokenlens.core.proposal import Proposal, SignalRequest, Signals
from tokenlens.core.rows import Rows
from tokenlens.spec import Cot2, LatentGrpo, SoftGrpoNoise, SoftTokens
from tokenlens.spec.needs import Need
from tokenlens.spec.registry import AnyMethod
from tokenlens.spec.rollouts import MAX_DRAWS

EPSILON = 1e-6
SCORED_FROM = -3.0
"""SofT-GRPO's log-probability is the mean over entries whose log weight is above this."""

# At most one method of this module is on for a request.
TAU = Field("rollout_noise.temperature", "float", 1.0)
SCALE = Field("rollout_noise.scale", "float", 1.0)
LOW = Field("rollout_noise.clamp_low", "float")
HIGH = Field("rollout_noise.clamp_high", "float")
OF_DRAW = Field("soft_grpo_noise.of_draw", "bool", False)
NUCLEUS = Field("latent_grpo.top_p", "float", 1.0)
SHIFT = Field("latent_grpo.shift", "float")
DRAWS = Field("cot2.draws", "int", 1)
DRAWN = Field("cot2.drawn", "int", 0, size=MAX_DRAWS)


def gumbel_log_density(noise: Tensor) -> Tensor:
    """Of standard Gumbel draws, elementwise."""
    return -noise - torch.exp(-noise)


def masked_mean(values: Tensor, where: Tensor) -> Tensor:
    """Over the last dimension; 0 where nothing counts."""
    total = torch.where(where, values, 0.0).sum(dim=-1)
    return total / where.sum(dim=-1).clamp(min=1)


def soft_grpo(
    weights: Tensor, gumbel: Tensor, tau: Tensor, scale: Tensor, low: Tensor, high: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """SofT-GRPO's noise on concept weights.

    Parameters
    ----------
    weights, gumbel
        ``[num_rows, width]``: what the filters and the cut left, and standard Gumbel draws.
    tau, scale, low, high
        ``[num_rows]``.

    Returns
    -------
    weights, scores, of_noise, of_draw
        Noised weights and ``y = ln(w + 1e-6) + scale * clamp(g)``, in the order of the arguments,
        and the step's log-probability: of the scaled noise, which a trainer recomputes from the
        scores, and of the draw (the authors' code; the same for a scale of 1).
    """
    log_weights = torch.log(weights + EPSILON)
    draw = gumbel.clamp(low[:, None], high[:, None])
    noise = draw * scale[:, None]
    scores = log_weights + noise
    counts = log_weights > SCORED_FROM
    # What the filters took out stays out: its weight in the reference is below 1e-40.
    live = torch.where(weights > 0, scores, -torch.inf)
    return (
        torch.softmax(live / tau[:, None], dim=1),
        scores,
        masked_mean(gumbel_log_density(noise), counts),
        masked_mean(gumbel_log_density(draw), counts),
    )


def candidates(log_probabilities: Tensor, top_p: Tensor, entries: Tensor) -> Tensor:
    """Entries that Latent-GRPO's noise may lift: the nucleus, and at least the first ones."""
    p = log_probabilities.exp()
    before = p.cumsum(dim=1) - p
    rank = torch.arange(p.shape[1], device=p.device)
    return (before < top_p[:, None]) | (rank < entries[:, None])


class SoftGrpoNoiseMethod(Method):
    """SofT-GRPO's noise, keyed like that of ``gumbel_noise``."""

    def __init__(self) -> None:
        super().__init__("soft_grpo_noise", TAU, SCALE, LOW, HIGH, OF_DRAW)

    def admit(self, config: AnyMethod, admission: Admission) -> Mapping[Field, Value]:
        assert isinstance(config, SoftGrpoNoise)
        return {
            TAU: config.temperature,
            SCALE: config.scale,
            LOW: config.clamp_low,
            HIGH: config.clamp_high,
            OF_DRAW: config.rules.log_probability_of == "draw",
        }

    def needs(self, config: AnyMethod) -> Need:
        return Need.SCORES

    def reweigh(self, rows: Rows, signals: Signals, proposal: Proposal) -> None:
        weights, ids = proposal.weights, proposal.ids
        noised, scores, of_noise, of_draw = soft_grpo(
            weights, _gumbel(rows, ids), rows[TAU], rows[SCALE], rows[LOW], rows[HIGH]
        )
        _take(self, rows, signals, proposal, noised, ids, scores)
        log_probability = torch.where(rows[OF_DRAW], of_draw, of_noise)
        rows.choose(LOG_PROBABILITY, rows[self.on], log_probability)


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
        noise = _gumbel(rows, signals.ids).clamp(rows[LOW][:, None], rows[HIGH][:, None])
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
        _take(self, rows, signals, proposal, weights, ids, scores, on)
        log_probability = masked_mean(gumbel_log_density(noise), kept)
        rows.choose(LOG_PROBABILITY, rows[self.on], torch.where(on, log_probability, 0.0))


class Cot2Method(Method):
    """Tokens drawn from the whole vocabulary; the first one is visible."""

    def __init__(self) -> None:
        super().__init__("cot2", DRAWS, DRAWN)

    def admit(self, config: AnyMethod, admission: Admission) -> Mapping[Field, Value]:
        assert isinstance(config, Cot2)
        return {
            DRAWS: config.draws,
            INVERSE_TEMPERATURE: 1 / config.draws if config.scale_logits else 1.0,
            MAX_ENTRIES: min(config.draws, admission.vocab_size),
        }

    def needs(self, config: AnyMethod) -> Need:
        return Need.SCORES

    def edit(self, logits: Tensor, rows: Rows) -> Tensor:
        real = torch.arange(logits.shape[1], device=logits.device) < rows.vocab_size
        if rows.holes is not None:
            real = real.index_fill(0, rows.holes, False)
        z = torch.where(real, logits.float() * rows[INVERSE_TEMPERATURE][:, None], -torch.inf)
        log_p = torch.log_softmax(
            z.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf), dim=1
        )
        cumulated = log_p.exp().cumsum(dim=1)
        index = torch.arange(MAX_DRAWS, device=logits.device)
        place = philox.offset(rows[POSITION][:, None], index, philox.SAMPLE)
        uniform = philox.uniform(rows[SEED][:, None], place)
        # Never past the last token that has any mass: the product may round up to all of it.
        whole = cumulated[:, -1:]
        wanted = (uniform * whole).minimum(torch.nextafter(whole, torch.zeros_like(whole)))
        drawn = torch.searchsorted(cumulated, wanted, right=True).clamp(max=logits.shape[1] - 1)
        rows[DRAWN] = torch.where(rows[self.on][:, None], drawn, rows[DRAWN])
        kept = index < rows[DRAWS][:, None]
        log_probability = torch.where(kept, log_p.gather(1, drawn), 0.0).sum(dim=1)
        # Elsewhere nothing is drawn that counts.
        log_probability = torch.where(rows.thinking, log_probability, 0.0)
        rows.choose(LOG_PROBABILITY, rows[self.on], log_probability)
        return logits

    def request_signals(self, rows: Rows, request: SignalRequest) -> None:
        request.active = request.active | (rows[self.on] & rows.thinking)

    def reweigh(self, rows: Rows, signals: Signals, proposal: Proposal) -> None:
        width = proposal.weights.shape[1]
        index = torch.arange(width, device=proposal.weights.device)
        drawn = rows[DRAWN][:, index.clamp(max=MAX_DRAWS - 1)]
        kept = index < rows[DRAWS][:, None]
        weights = kept / rows[DRAWS][:, None]
        ids = torch.where(kept, drawn, drawn[:, :1])
        _take(self, rows, signals, proposal, weights, ids, torch.zeros_like(weights))

    def propose(self, rows: Rows, signals: Signals, proposal: Proposal) -> None:
        latent = rows[self.on] & signals.valid & rows.thinking
        proposal.latent = proposal.latent | latent
        proposal.force(latent, proposal.ids[:, 0])


class EmbeddingNoiseMethod(Method):
    """Asks the engine for Gaussian noise on what Soft Tokens feeds."""

    def __init__(self) -> None:
        super().__init__("embedding_noise")

    def serves(self, config: AnyMethod) -> bool:
        return isinstance(config, SoftTokens) and config.noise_scale > 0

    def admit(self, config: AnyMethod, admission: Admission) -> Mapping[Field, Value]:
        assert isinstance(config, SoftTokens)
        # The root of the width, which only the engine knows, is marked by the sign.
        return {NOISE_SCALE: config.noise_scale * (1 if config.rms == "coordinate" else -1)}


def _gumbel(rows: Rows, ids: Tensor) -> Tensor:
    place = philox.offset(rows[POSITION][:, None], ids, philox.GUMBEL)
    return philox.gumbel(rows[SEED][:, None], place)


def _take(
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
