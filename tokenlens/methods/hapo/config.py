"""What HAPO's temperature can be asked for (arXiv 2509.16591)."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from tokenlens.methods._shared.samplers import AdaptiveTemperature
from tokenlens.spec.base import BELOW_ONE, QUIRKS, StrictModel


class HapoQuirks(StrictModel):
    """What HAPO's code does, and its paper does not say."""

    sign: Literal["paper", "as_given"] = Field(
        "paper", description="as_given: a negative scale_neg makes low entropies hotter"
    )


class Hapo(AdaptiveTemperature):
    """HAPO's temperature (arXiv 2509.16591), with the statistics of the trainer's last step."""

    published: ClassVar[Mapping[str, Any]] = {"floor": 1e-6, "quirks": {"sign": "as_given"}}

    method: Literal["hapo"] = "hapo"
    median: float = Field(..., ge=-100, le=100, description="of ln(entropy)")
    std: float = Field(..., ge=0, le=100, description="of ln(entropy)")
    scale_pos: float = Field(
        ..., ge=-1e6, le=1e6, description="multiplies (ln(entropy) - median) / std where positive"
    )
    scale_neg: float = Field(
        ..., ge=-1e6, le=1e6, description="multiplies (ln(entropy) - median) / std where negative"
    )
    strength: float = Field(0.05, ge=0, le=BELOW_ONE, description="the largest change, as a share")
    quirks: HapoQuirks | None = QUIRKS


CONFIG = Hapo
