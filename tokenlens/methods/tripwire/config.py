"""What ends a request before a step, so that whoever asked decides what comes there."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from tokenlens.methods._shared.samplers import SamplerMethod
from tokenlens.spec.base import LEAST

CONDITIONS = frozenset({"entropy", "max_probability", "margin", "second", "token"})
FORKING = 0.672
"""Nats."""


class Tripwire(SamplerMethod):
    """End the request before a token whose distribution meets one of the conditions.

    The end of the text is written in the token's place; whoever asked drops it, and goes on from
    there. The trace has the place, the condition and its value (``tripped``).
    """

    method: Literal["tripwire"] = "tripwire"
    entropy: float | None = Field(
        None,
        ge=0,
        le=100,
        description="nats; met from there on; null = not asked, and 0.672 where nothing is"
        " (the 80th percentile of forking_temperature)",
    )
    max_probability: float | None = Field(
        None, ge=0, le=1, description="of the likeliest token; met up to there; null = not asked"
    )
    margin: float | None = Field(
        None,
        ge=LEAST,
        le=1,
        description="met where the likeliest token is less than that above the second; null = not"
        " asked, unless there is a second",
    )
    second: float | None = Field(
        None, ge=0, le=1, description="and where the second one is above that; null = any"
    )
    token: int | None = Field(
        None, ge=0, le=10_000_000, description="an id whose rank is looked at; null = not asked"
    )
    rank: int = Field(
        1, ge=1, le=10_000_000, description="met where the token's rank is at most that; 1 = first"
    )
    temperature: float = Field(
        1.0, ge=LEAST, le=100, description="of the distribution that is looked at"
    )
    top_k: int = Field(0, ge=0, le=10_000_000, description="of the same; 0 = all tokens")
    top_p: float = Field(1.0, ge=LEAST, le=1, description="of the same; 1 = all tokens")
    skip: int = Field(
        0, ge=0, le=10_000_000, description="tokens of the request that are not looked at"
    )

    @property
    def ends_text(self) -> bool:
        """Writes an end of the text."""
        return True

    @model_validator(mode="before")
    @classmethod
    def _of_entropy_alone(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and not CONDITIONS.intersection(data):
            return {**data, "entropy": FORKING}
        return data

    @model_validator(mode="after")
    def _has_a_condition(self) -> "Tripwire":
        allowed = ""
        if all(getattr(self, name) is None for name in CONDITIONS):
            allowed = "at least one of entropy, max_probability, margin, second and token"
        elif self.token is None and self.rank != 1:
            allowed = "a token beside rank"
        if allowed:
            raise PydanticCustomError("not_allowed", "allowed: {allowed}", {"allowed": allowed})
        return self


CONFIG = Tripwire
