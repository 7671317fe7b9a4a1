"""Control: what a model knows after some thinking."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from tokenlens.spec.base import MethodBase, Recipe


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


CONFIG = AnswerNow
