"""The thought switching penalty (arXiv 2501.18585)."""

from typing import Literal

from pydantic import Field

from tokenlens.methods._shared.words import MAX_TOKENS, Words, WordsMethod


class Tip(WordsMethod):
    """Penalise words that switch the thought while the current one is young (arXiv 2501.18585)."""

    method: Literal["tip"] = "tip"
    words: Words = Field(("alternatively",), description="that announce another thought")
    penalty: float = Field(3.0, ge=0, le=100, description="alpha: taken off, in logits")
    duration: int = Field(
        600, ge=0, le=MAX_TOKENS, description="beta: tokens after the current thought began"
    )


CONFIG = Tip
