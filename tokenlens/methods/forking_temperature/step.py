"""The temperature of forking tokens ("Beyond the 80/20 rule", arXiv 2506.01939, section 3).

A token whose distribution has a high entropy opens the way for what follows. Above ``threshold``
the logits are divided by ``high``, else by ``low``; the entropy is the full vocabulary's in nats,
at temperature 1, after the other logit edits. At the threshold itself the rule jumps: two engines
whose entropies differ in the last bit there sample at different temperatures.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from tokenlens.core.columns import Field, Value
from tokenlens.core.method import Admission
from tokenlens.core.rows import Rows
from tokenlens.methods._shared.temperature import TemperatureMethod
from tokenlens.methods.forking_temperature.config import ForkingTemperature
from tokenlens.spec.registry import AnyMethod

THRESHOLD = Field("forking_temperature.threshold", "float")
HIGH = Field("forking_temperature.high", "float", 1.0)
LOW = Field("forking_temperature.low", "float", 1.0)


def forking_temperature(entropy: Tensor, threshold: Tensor, high: Tensor, low: Tensor) -> Tensor:
    """The temperature of each row, ``[num_rows]``.

    Parameters
    ----------
    entropy, threshold, high, low
        ``[num_rows]`` float; the first two in nats.
    """
    return torch.where(entropy > threshold, high, low)


class ForkingTemperatureMethod(TemperatureMethod):
    """Divides the logits by one of two temperatures."""

    def __init__(self) -> None:
        super().__init__("forking_temperature", THRESHOLD, HIGH, LOW)

    def admit(self, config: AnyMethod, admission: Admission) -> Mapping[Field, Value]:
        assert isinstance(config, ForkingTemperature)
        return {
            **super().admit(config, admission),
            THRESHOLD: config.threshold,
            HIGH: config.high,
            LOW: config.low,
        }

    def wanted(self, entropy: Tensor, rows: Rows) -> Tensor:
        return forking_temperature(entropy, rows[THRESHOLD], rows[HIGH], rows[LOW])


STEPS = (ForkingTemperatureMethod(),)
