"""What s1's budget forcing can be asked for (arXiv 2501.19393)."""

from typing import Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from tokenlens.methods._shared.words import MAX_TOKENS
from tokenlens.spec.base import MethodBase


class S1(MethodBase):
    """Budget forcing (arXiv 2501.19393): thinking that ends early goes on, late thinking ends."""

    method: Literal["s1"] = "s1"
    ignore_end: int = Field(1, ge=0, le=1000, description="ends of thinking that are replaced")
    text: str = Field("Wait", min_length=1, max_length=256, description="what replaces them")
    max_thinking: int | None = Field(
        None, ge=0, le=MAX_TOKENS, description="thinking tokens; null = no end is forced"
    )
    answer_prefix: str | None = Field(
        None, min_length=1, max_length=256, description="written after an end that was forced"
    )
    temperature: float = Field(
        0.0, ge=0, le=100, description="the engine's; an end is replaced as often as it is drawn"
    )

    @property
    def is_budget(self) -> bool:
        """Ends thinking after a number of tokens."""
        return self.max_thinking is not None

    @property
    def uses_seed(self) -> bool:
        """Draws: what it does depends on the request's seed."""
        return self.temperature > 0

    @model_validator(mode="after")
    def _prefix_needs_an_end(self) -> "S1":
        if self.answer_prefix is not None and self.max_thinking is None:
            raise PydanticCustomError(
                "not_allowed",
                "allowed: {allowed}",
                {"allowed": "an answer_prefix only beside max_thinking"},
            )
        return self


CONFIG = S1
