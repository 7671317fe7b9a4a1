"""Words that cost something: the thought switching penalty, and words that are banned."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from tokenlens.spec.base import QUIRKS, MethodBase, StrictModel
from tokenlens.spec.schedules import MAX_TOKENS, MAX_WORDS, Word, Words, WordsMethod, as_tuple

NOWAIT_WORDS = (
    "wait", "alternatively", "hmm", "but", "however", "alternative", "another", "check",
    "double-check", "oh", "maybe", "verify", "other", "again", "now", "ah", "any",
)  # fmt: skip
"""The keywords of NoWait (arXiv 2506.08343)."""


class Tip(WordsMethod):
    """Penalise words that switch the thought while the current one is young (arXiv 2501.18585)."""

    method: Literal["tip"] = "tip"
    words: Words = Field(("alternatively",), description="that announce another thought")
    penalty: float = Field(3.0, ge=0, le=100, description="alpha: taken off, in logits")
    duration: int = Field(
        600, ge=0, le=MAX_TOKENS, description="beta: tokens after the current thought began"
    )


class NoWaitQuirks(StrictModel):
    """What NoWait's code does, and its paper does not say."""

    match: Literal["word", "substring"] = Field(
        "word", description="word: tokens that hold one of the words whole; case never matters"
    )
    exclude: Annotated[tuple[Word, ...], BeforeValidator(as_tuple), Field(max_length=MAX_WORDS)] = (
        Field((), description="tokens that hold one of these stay")
    )
    active: Literal["thinking", "output"] = Field(
        "thinking", description="banned while thinking, or in the answer too"
    )


class NoWait(MethodBase):
    """Ban the tokens of words that announce a reflection (arXiv 2506.08343)."""

    published: ClassVar[Mapping[str, Any]] = {
        "quirks": {
            "match": "substring",
            "exclude": ("ohio", "butane", "button", "butterfly"),
            "active": "output",
        }
    }

    method: Literal["nowait"] = "nowait"
    words: Words = Field(NOWAIT_WORDS, description="that announce a reflection")
    quirks: NoWaitQuirks | None = QUIRKS
