"""What SofT-GRPO's noise can be asked for (arXiv 2511.06411)."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from tokenlens.methods._shared.noise import ConceptNoise
from tokenlens.spec.base import LEAST, MAX_NOISE, QUIRKS, StrictModel


class SoftGrpoQuirks(StrictModel):
    """What SofT-GRPO's code does, and its paper does not say."""

    log_probability_of: Literal["noise", "draw"] = Field(
        "noise", description="draw: of the draw before it is scaled, which no trainer sees"
    )


class SoftGrpoNoise(ConceptNoise):
    """Clamped Gumbel noise on the concept weights, recorded so that a trainer can score it."""

    published: ClassVar[Mapping[str, Any]] = {"quirks": {"log_probability_of": "draw"}}

    method: Literal["soft_grpo_noise"] = "soft_grpo_noise"
    temperature: float = Field(0.1, ge=LEAST, le=100, description="tau; small = nearly one-hot")
    scale: float = Field(1.0, ge=LEAST, le=MAX_NOISE, description="of the noise")
    clamp_low: float = Field(-1.5, ge=-100, le=0, description="noise below it is raised to it")
    clamp_high: float = Field(3.0, ge=0, le=100, description="noise above it is lowered to it")
    quirks: SoftGrpoQuirks | None = QUIRKS


CONFIG = SoftGrpoNoise
