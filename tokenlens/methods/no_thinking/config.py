"""Control: what a model knows without thinking."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from tokenlens.spec.base import Excludes, MethodBase, Recipe


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


CONFIG = NoThinking
