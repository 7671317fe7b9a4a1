"""EDT, entropy-based dynamic temperature (arXiv 2403.14541, section 3): ``T0 * base ** (theta/H)``.

``H`` is the full vocabulary's entropy in nats at temperature 1, after the other logit edits. Near
certainty the formula goes to 0, so that there is a floor: 0.05, or 1e-6 in the ``published``
profile, the value of a third party's adapter (the authors' code has none and divides by zero).
"""

from collections.abc import Mapping

from torch import Tensor

from tokenlens.core.columns import Field, Value
from tokenlens.core.method import Admission
from tokenlens.core.rows import Rows
from tokenlens.methods._shared.temperature import TemperatureMethod
from tokenlens.methods.edt.config import Edt
from tokenlens.spec.registry import AnyMethod

TEMPERATURE = Field("edt.temperature", "float", 1.0)
BASE = Field("edt.base", "float", 1.0)
THETA = Field("edt.theta", "float")
FLOOR = Field("edt.floor", "float", 1.0)


def edt_temperature(entropy: Tensor, temperature: Tensor, base: Tensor, theta: Tensor) -> Tensor:
    """The temperature of each row, ``[num_rows]`` float64, without a floor.

    Parameters
    ----------
    entropy, temperature, base, theta
        ``[num_rows]`` float; the entropy in nats.
    """
    return temperature * base.double() ** (theta.double() / entropy.double())


class EdtMethod(TemperatureMethod):
    """Divides the logits by a temperature that falls with the entropy."""

    def __init__(self) -> None:
        super().__init__("edt", TEMPERATURE, BASE, THETA, FLOOR)

    def admit(self, config: AnyMethod, admission: Admission) -> Mapping[Field, Value]:
        assert isinstance(config, Edt)
        return {
            **super().admit(config, admission),
            TEMPERATURE: config.temperature,
            BASE: config.base,
            THETA: config.theta,
            FLOOR: config.floor,
        }

    def wanted(self, entropy: Tensor, due: Tensor, rows: Rows) -> Tensor:
        wanted = edt_temperature(entropy, rows[TEMPERATURE], rows[BASE], rows[THETA])
        return wanted.nan_to_num(0.0).maximum(rows[FLOOR])


STEPS = (EdtMethod(),)
