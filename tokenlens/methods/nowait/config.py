"""Words that are banned (arXiv 2506.08343)."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from tokenlens.methods._shared.words import MAX_WORDS, Word, Words, as_tuple
from tokenlens.spec.base import QUIRKS, MethodBase, StrictModel

NOWAIT_WORDS = (
    "wait", "alternatively", "hmm", "but", "however", "alternative", "another", "check",
    "double-check", "oh", "maybe", "verify", "other", "again", "now", "ah", "any",
)  # fmt: skip
"""The keywords of NoWait (arXiv 2506.08343)."""


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


CONFIG = NoWait
