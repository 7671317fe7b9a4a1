"""Control: a gate that looks at nothing."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from tokenlens.spec.base import DrawingMethod, Excludes, Recipe, Requires


class RandomRoute(DrawingMethod):
    """Let chance decide, at a fixed share, which thinking steps are latent."""

    requires: ClassVar[tuple[Requires, ...]] = (
        Requires("latent", "it decides which steps are latent"),
    )
    excludes: ClassVar[tuple[Excludes, ...]] = (
        Excludes("gate", "two gates would decide one step"),
    )
    recipes: ClassVar[Mapping[str, Recipe]] = {
        "random-route": Recipe(
            "control: half of the thinking steps latent, chosen by chance",
            ({"method": "soft_thinking"}, {"method": "random_route"}),
        )
    }

    method: Literal["random_route"] = "random_route"
    latent_share: float = Field(0.5, ge=0, le=1, description="of the thinking steps")


CONFIG = RandomRoute
