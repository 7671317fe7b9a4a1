"""Randomised soft thinking by Dirichlet draws (arXiv 2508.03440)."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from tokenlens.methods._shared.noise import ConceptNoise
from tokenlens.spec.base import BELOW_ONE, LEAST, QUIRKS, Excludes, Recipe, StrictModel


class DirichletQuirks(StrictModel):
    """What the code of randomised Soft Thinking does, and its paper does not say."""

    probability_floor: float = Field(
        0.0, ge=0, le=BELOW_ONE, description="entries at or below it stay out, but for the largest"
    )


class DirichletNoise(ConceptNoise):
    """Concept weights drawn from a Dirichlet whose mean is the filtered distribution."""

    published: ClassVar[Mapping[str, Any]] = {"quirks": {"probability_floor": 1e-7}}
    excludes: ClassVar[tuple[Excludes, ...]] = (
        Excludes(
            "latent",
            "the draw is over the entries that the filters keep",
            field="top_k",
            value=0,
            instead="a top_k of 1 to 64",
        ),
        *ConceptNoise.excludes,
    )
    recipes: ClassVar[Mapping[str, Recipe]] = {
        "dirichlet": Recipe(
            "Soft Thinking with Dirichlet noise (alpha 4)",
            ({"method": "soft_thinking"}, {"method": "dirichlet_noise"}),
        ),
        "dirichlet-published": Recipe(
            "Randomised Soft Thinking, Dirichlet, as the authors' code does it",
            (
                {"method": "soft_thinking", "profile": "published"},
                {"method": "dirichlet_noise", "profile": "published"},
            ),
        ),
    }

    method: Literal["dirichlet_noise"] = "dirichlet_noise"
    concentration: float = Field(4.0, ge=LEAST, le=1e6, description="alpha; large = little noise")
    quirks: DirichletQuirks | None = QUIRKS


CONFIG = DirichletNoise
