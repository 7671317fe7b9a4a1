"""SofT-GRPO (arXiv 2511.06411): clamped Gumbel noise on the logarithms of the concept weights.

Not reproduced: the code uses the first request's noise settings for the whole batch, and the
end-of-thinking token of one model for all.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from tokenlens.core.columns import LOG_PROBABILITY, Field, Value
from tokenlens.core.method import Admission, Method
from tokenlens.core.proposal import Proposal, Signals
from tokenlens.core.rows import Rows
from tokenlens.methods._shared.rollout_noise import (
    EPSILON,
    HIGH,
    LOW,
    SCALE,
    SCORED_FROM,
    TAU,
    gumbel_log_density,
    gumbel_of,
    masked_mean,
    take,
)
from tokenlens.methods.soft_grpo_noise.config import SoftGrpoNoise
from tokenlens.spec.needs import Need
from tokenlens.spec.registry import AnyMethod

OF_DRAW = Field("soft_grpo_noise.of_draw", "bool", False)


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
            weights, gumbel_of(rows, ids), rows[TAU], rows[SCALE], rows[LOW], rows[HIGH]
        )
        take(self, rows, signals, proposal, noised, ids, scores)
        log_probability = torch.where(rows[OF_DRAW], of_draw, of_noise)
        rows.choose(LOG_PROBABILITY, rows[self.on], log_probability)


STEPS = (SoftGrpoNoiseMethod(),)
