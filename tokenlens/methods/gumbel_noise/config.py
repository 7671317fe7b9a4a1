"""Randomised soft thinking by Gumbel-softmax (arXiv 2508.03440)."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from tokenlens.methods._shared.noise import ConceptNoise
from tokenlens.spec.base import LEAST, Recipe


class GumbelNoise(ConceptNoise):
    """Gumbel-softmax on the concept weights: their top entry becomes an exact sample of them."""

    recipes: ClassVar[Mapping[str, Recipe]] = {
        "gumbel": Recipe(
            "Soft Thinking with Gumbel-softmax noise (tau 0.5)",
            ({"method": "soft_thinking"}, {"method": "gumbel_noise"}),
        ),
        "gumbel-published": Recipe(
            "Randomised Soft Thinking, Gumbel, as the authors' code does it",
            (
                {"method": "soft_thinking", "profile": "published"},
                {"method": "gumbel_noise", "profile": "published"},
            ),
        ),
    }

    method: Literal["gumbel_noise"] = "gumbel_noise"
    temperature: float = Field(0.5, ge=LEAST, le=100, description="tau; small = nearly one-hot")


CONFIG = GumbelNoise
