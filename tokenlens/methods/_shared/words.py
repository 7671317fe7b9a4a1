"""Fields of methods that change the logits of words, and of those that count tokens. No torch."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from tokenlens.spec.base import MethodBase, StrictModel

MAX_WORDS = 64

MAX_TOKENS = 10_000_000
"""The largest number of tokens that a method counts to."""

REFLECTION_WORDS = ("wait", "Wait", "but", "But", "Alternatively")
"""The words of CyclicReflex's code."""


def as_tuple(value: Any) -> Any:
    """JSON and YAML have no tuples, and the models are strict."""
    return tuple(value) if isinstance(value, list) else value


Word = Annotated[str, Field(min_length=1, max_length=32)]

Words = Annotated[
    tuple[Word, ...], BeforeValidator(as_tuple), Field(min_length=1, max_length=MAX_WORDS)
]

Forms = Literal["all", "bare"]

Counted = Literal["thinking", "output"]


class CountedMethod(MethodBase):
    """A method that looks at how many tokens there are."""

    counted: Counted = Field(
        "thinking", description="positions are counted over the thinking, or over the whole output"
    )
    count_prompt: bool = Field(
        False, description="thinking that the prompt already holds is counted too"
    )


class WordsMethod(MethodBase):
    """A method that changes the logits of words."""

    words: Words = Field(REFLECTION_WORDS, description="whose logits are changed")
    forms: Forms = Field(
        "all",
        description="all: bare, after a blank, capitalised and not; bare: the words as they stand",
    )
    unknown_words: Literal["error", "skip"] = Field(
        "error", description="what a word is that no single token of the tokenizer writes"
    )


class WordQuirks(StrictModel):
    """How some programs find the words and count the positions."""

    forms: Forms = Field(
        "all",
        description="all: bare, after a blank, capitalised and not; bare: the words as they stand",
    )
    unknown_words: Literal["error", "skip"] = Field(
        "error", description="what a word is that no single token of the tokenizer writes"
    )
    counted: Counted = Field(
        "thinking", description="positions are counted over the thinking, or over the whole output"
    )
