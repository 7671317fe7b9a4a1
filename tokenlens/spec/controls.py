"""Controls: methods that exist so that a claim about another method can be checked."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from tokenlens.spec.base import DrawingMethod, Excludes, MethodBase, Recipe, Requires


class Top1(MethodBase):
    """Replace every mixture by its top entry: the same visible tokens, nothing latent."""

    requires: ClassVar[tuple[Requires, ...]] = (
        Requires("latent", "it replaces a mixture by its top entry"),
    )
    recipes: ClassVar[Mapping[str, Recipe]] = {
        "top1": Recipe(
            "control: every mixture replaced by its top entry",
            ({"method": "soft_thinking"}, {"method": "top1"}),
        )
    }

    method: Literal["top1"] = "top1"


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


class NoThinking(MethodBase):
    """End thinking at once."""

    family: ClassVar[tuple[str, ...]] = ("budget",)
    excludes: ClassVar[tuple[Excludes, ...]] = (
        Excludes("answer_now", "both end thinking; answer_now with after=0 is no_thinking"),
    )
    recipes: ClassVar[Mapping[str, Recipe]] = {
        "no-thinking": Recipe("control: thinking ended at once", ({"method": "no_thinking"},))
    }

    method: Literal["no_thinking"] = "no_thinking"
    text: str | None = Field(
        None, min_length=1, max_length=256, description="forced text; null = the end marker"
    )


class AnswerNow(MethodBase):
    """End thinking after a number of thinking tokens, if the model has not ended it itself."""

    family: ClassVar[tuple[str, ...]] = ("budget",)
    recipes: ClassVar[Mapping[str, Recipe]] = {
        "answer-now": Recipe(
            "control: thinking ended after 128 tokens", ({"method": "answer_now", "after": 128},)
        )
    }

    method: Literal["answer_now"] = "answer_now"
    after: int = Field(..., ge=0, le=10_000_000, description="thinking tokens")
    text: str | None = Field(
        None, min_length=1, max_length=256, description="forced text; null = the end marker"
    )
