"""What EDT can be asked for (arXiv 2403.14541)."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from tokenlens.methods._shared.samplers import AdaptiveTemperature
from tokenlens.spec.base import LEAST


class Edt(AdaptiveTemperature):
    """Entropy-based dynamic temperature (arXiv 2403.14541): ``T0 * base ** (theta / entropy)``."""

    published: ClassVar[Mapping[str, Any]] = {"floor": 1e-6}

    method: Literal["edt"] = "edt"
    base: float = Field(0.8, ge=LEAST, le=1, description="N: raised to theta / entropy")
    theta: float = Field(1.0, ge=0, le=100, description="in nats; 0 = the temperature is fixed")


CONFIG = Edt
