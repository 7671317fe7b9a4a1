"""Randomised soft thinking: noise on the concept weights (arXiv 2508.03440)."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from tokenlens.spec.base import LEAST, DrawingMethod


class GumbelNoise(DrawingMethod):
    """Gumbel-softmax on the concept weights: their top entry becomes an exact sample of them."""

    method: Literal["gumbel_noise"] = "gumbel_noise"
    temperature: float = Field(0.5, ge=LEAST, le=100, description="tau; small = nearly one-hot")


class DirichletNoise(DrawingMethod):
    """Concept weights drawn from a Dirichlet whose mean is the filtered distribution."""

    published: ClassVar[Mapping[str, Any]] = {"probability_floor": 1e-7}

    method: Literal["dirichlet_noise"] = "dirichlet_noise"
    concentration: float = Field(4.0, ge=LEAST, le=1e6, description="alpha; large = little noise")
    probability_floor: float = Field(
        0.0, ge=0, lt=1, description="entries at or below it stay out, but for the largest"
    )
