"""Controls: methods that exist so that a claim about another method can be checked."""

from typing import Literal

from pydantic import Field

from tokenlens.spec.base import DrawingMethod, MethodBase


class Top1(MethodBase):
    """Replace every mixture by its top entry: the same visible tokens, nothing latent."""

    method: Literal["top1"] = "top1"


class RandomRoute(DrawingMethod):
    """Let chance decide, at a fixed share, which thinking steps are latent."""

    method: Literal["random_route"] = "random_route"
    latent_share: float = Field(0.5, ge=0, le=1, description="of the thinking steps")


class NoThinking(MethodBase):
    """End thinking at once."""

    method: Literal["no_thinking"] = "no_thinking"
    text: str | None = Field(
        None, min_length=1, max_length=256, description="forced text; null = the end marker"
    )

    @property
    def is_budget(self) -> bool:
        """Ends thinking after a number of tokens."""
        return True


class AnswerNow(MethodBase):
    """End thinking after a number of thinking tokens, if the model has not ended it itself."""

    method: Literal["answer_now"] = "answer_now"
    after: int = Field(..., ge=0, le=10_000_000, description="thinking tokens")
    text: str | None = Field(
        None, min_length=1, max_length=256, description="forced text; null = the end marker"
    )

    @property
    def is_budget(self) -> bool:
        """Ends thinking after a number of tokens."""
        return True
