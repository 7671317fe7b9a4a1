"""Biases on the logits of reflection words: a waveform over the position (arXiv 2506.11077)."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, field_validator
from pydantic_core import PydanticCustomError

from tokenlens.methods._shared.words import (
    MAX_TOKENS,
    REFLECTION_WORDS,
    WordQuirks,
    Words,
    as_tuple,
)
from tokenlens.spec.base import QUIRKS, MethodBase

Wave = Literal["triangular", "cosine", "square", "constant"]
"""Shapes of a schedule. A new one adds its name here and a function in _shared/waves.py."""

MAX_WINDOWS = 8

Position = Annotated[int, Field(ge=0, le=MAX_TOKENS)]

Window = Annotated[tuple[Position, Position], BeforeValidator(as_tuple)]


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


CONFIG = CyclicReflex
