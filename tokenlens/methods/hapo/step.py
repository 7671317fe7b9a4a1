"""HAPO's temperature (arXiv 2509.16591): up to 5 per cent colder or hotter by the step's entropy.

``h = (ln H - median) / std`` with statistics that the trainer takes from its last step, scaled so
that the largest becomes 1, and the smallest -1; ``T = T0 * (1 + 0.05 * clamp(scale * h, -1, 1))``.

=====================  ===============================  ========================================
what                   default                          ``published`` (authors' code)
=====================  ===============================  ========================================
scale of negative h    its absolute value: certain      1 / min(h), a negative number: certain
                       steps get colder                 steps get hotter as well
=====================  ===============================  ========================================
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from tokenlens.core.columns import Field, Value
from tokenlens.core.method import Admission
from tokenlens.core.rows import Rows
from tokenlens.methods._shared.temperature import TemperatureMethod
from tokenlens.methods.hapo.config import Hapo
from tokenlens.spec.registry import AnyMethod

MEDIAN = Field("hapo.median", "float")
STD = Field("hapo.std", "float", 1.0)
SCALE_POS = Field("hapo.scale_pos", "float")
SCALE_NEG = Field("hapo.scale_neg", "float")
STRENGTH = Field("hapo.strength", "float")
TEMPERATURE = Field("hapo.temperature", "float", 1.0)
FLOOR = Field("hapo.floor", "float", 1.0)


class Statistics(NamedTuple):
    """What the trainer passes on; the fields of a ``hapo`` config."""

    median: float
    std: float
    scale_pos: float
    scale_neg: float


def statistics(entropies: Tensor, pivot: float = 0.8) -> Statistics:
    """A step's statistics, for the next step's configs. For trainers: reads values on the host.

    Parameters
    ----------
    entropies
        ``[num_tokens]`` float, nats.
    pivot
        Quantile that stands for the middle.
    """
    e = entropies.double().clamp_min(1e-8).log()
    median = e.quantile(pivot, interpolation="nearest")
    std = (e - median).square().mean().sqrt()
    h = (e - median) / (std + 1e-6)
    largest, smallest = float(h.max()), float(h.min())
    return Statistics(
        float(median),
        float(std),
        1 / largest if largest > 0 else 0.0,
        1 / smallest if smallest < 0 else 0.0,
    )


def hapo_temperature(
    entropy: Tensor,
    median: Tensor,
    std: Tensor,
    scale_pos: Tensor,
    scale_neg: Tensor,
    strength: Tensor,
    temperature: Tensor,
) -> Tensor:
    """The temperature of each row, ``[num_rows]`` float64. All ``[num_rows]``; entropy in nats."""
    h = (entropy.double().clamp_min(1e-6).log() - median) / (std + 1e-6)
    scaled = (h * torch.where(h >= 0, scale_pos, scale_neg)).clamp(-1, 1)
    return temperature * (1 + strength * scaled)


class HapoMethod(TemperatureMethod):
    """Divides the logits by a temperature that follows the entropy within a few per cent."""

    def __init__(self) -> None:
        super().__init__(
            "hapo",
            *(MEDIAN, STD, SCALE_POS, SCALE_NEG, STRENGTH, TEMPERATURE, FLOOR),
        )

    def admit(self, config: AnyMethod, admission: Admission) -> Mapping[Field, Value]:
        assert isinstance(config, Hapo)
        scale_neg = abs(config.scale_neg) if config.rules.sign == "paper" else config.scale_neg
        return {
            **super().admit(config, admission),
            MEDIAN: config.median,
            STD: config.std,
            SCALE_POS: config.scale_pos,
            SCALE_NEG: scale_neg,
            STRENGTH: config.strength,
            TEMPERATURE: config.temperature,
            FLOOR: config.floor,
        }

    def wanted(self, entropy: Tensor, due: Tensor, rows: Rows) -> Tensor:
        columns = (MEDIAN, STD, SCALE_POS, SCALE_NEG, STRENGTH, TEMPERATURE)
        wanted = hapo_temperature(entropy, *(rows[column] for column in columns))
        return wanted.maximum(rows[FLOOR])


STEPS = (HapoMethod(),)
