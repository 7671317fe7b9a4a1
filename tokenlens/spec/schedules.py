"""Biases on the logits of reflection words: waveforms over the position, and what is counted."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, field_validator
from pydantic_core import PydanticCustomError

from tokenlens.spec.base import QUIRKS, MethodBase, StrictModel

Wave = Literal["triangular", "cosine", "square", "constant"]
"""Shapes of a schedule. A new one adds its name here and a function in tokenlens.methods.waves."""

MAX_WINDOWS = 8
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
Position = Annotated[int, Field(ge=0, le=MAX_TOKENS)]
Window = Annotated[tuple[Position, Position], BeforeValidator(as_tuple)]
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


class WaveQuirks(WordQuirks):
    """What CyclicReflex's code does, and its paper does not say."""

    active: Literal["thinking", "until_end"] = Field(
        "thinking",
        description="until_end: from the first token on until the output holds the end marker,"
        " whatever the prompt says",
    )


class Schedule(MethodBase):
    """A waveform over the position, added to the logits of words while the model thinks."""

    published: ClassVar[Mapping[str, Any]] = {
        "quirks": {
            "forms": "bare",
            "unknown_words": "skip",
            "counted": "output",
            "active": "until_end",
        }
    }

    words: Words = Field(REFLECTION_WORDS, description="whose logits are changed")
    count_prompt: bool = Field(
        False, description="thinking that the prompt already holds is counted too"
    )
    wave: Wave = Field("triangular", description="shape of the bias over the position")
    amplitude: float = Field(5.0, ge=-100, le=100, description="of the bias, in logits")
    period: float = Field(1200.0, ge=1, le=MAX_TOKENS, description="in tokens")
    shift: float = Field(0.0, ge=-1, le=1, description="in periods")
    windows: Annotated[
        tuple[Window, ...], BeforeValidator(as_tuple), Field(max_length=MAX_WINDOWS)
    ] = Field((), description="positions [start, stop) in which it acts; none given = everywhere")
    quirks: WaveQuirks | None = QUIRKS

    @field_validator("windows")
    @classmethod
    def _in_order(cls, windows: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
        edges = [edge for window in windows for edge in window]
        if any(start >= stop for start, stop in windows) or edges != sorted(edges):
            raise PydanticCustomError(
                "not_allowed",
                "allowed: {allowed}",
                {"allowed": "pairs [start, stop) with start < stop, in order, not overlapping"},
            )
        return windows


class CyclicReflex(Schedule):
    """Boost and suppress reflection words in turns (arXiv 2506.11077)."""

    method: Literal["cyclic_reflex"] = "cyclic_reflex"


class StaticWindow(Schedule):
    """A constant bias inside absolute windows: what CyclicReflex's repository calls TIP."""

    method: Literal["static_window"] = "static_window"
    wave: Wave = Field("constant", description="shape of the bias over the position")
    amplitude: float = Field(-3.0, ge=-100, le=100, description="of the bias, in logits")
