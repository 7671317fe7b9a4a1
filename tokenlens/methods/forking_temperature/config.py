"""What the temperature of forking tokens can be asked for (arXiv 2506.01939)."""

from typing import Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from tokenlens.methods._shared.samplers import EntropyTemperature
from tokenlens.spec.base import BELOW_ONE, LEAST

MAX_WINDOW = 256
"""Entropies that are kept of a request."""
THRESHOLD = 0.672


class ForkingTemperature(EntropyTemperature):
    """One temperature where the entropy is high, another where it is not (arXiv 2506.01939)."""

    method: Literal["forking_temperature"] = "forking_temperature"
    threshold: float = Field(
        THRESHOLD,
        ge=0,
        le=100,
        description="nats; a token above it is a forking token. 0.672 = the 80th percentile of"
        " Qwen3-8B on AIME at temperature 1: measure it on another model",
    )
    high: float = Field(
        1.2, ge=LEAST, le=100, description="temperature of forking tokens (the default is ours)"
    )
    low: float = Field(1.0, ge=LEAST, le=100, description="temperature of all others")
    quantile: float | None = Field(
        None,
        ge=LEAST,
        le=BELOW_ONE,
        description="instead of the threshold: the share of the request's own last entropies that a"
        " forking token's is above, 0.8 for the 80/20 rule",
    )
    window: int = Field(
        MAX_WINDOW, ge=2, le=MAX_WINDOW, description="how many entropies the quantile is of"
    )

    @model_validator(mode="after")
    def _two_temperatures(self) -> "ForkingTemperature":
        if self.high == self.low:
            raise PydanticCustomError(
                "not_allowed",
                "allowed: {allowed}",
                {"allowed": "a high and a low that differ: one temperature is the engine's own"},
            )
        return self

    @model_validator(mode="after")
    def _one_rule(self) -> "ForkingTemperature":
        if self.quantile is None and self.window != MAX_WINDOW:
            wanted = "a window where there is a quantile"
        elif self.quantile is not None and self.threshold != THRESHOLD:
            wanted = "a threshold or a quantile: with a quantile leave the threshold out"
        else:
            return self
        raise PydanticCustomError("not_allowed", "allowed: {allowed}", {"allowed": wanted})


CONFIG = ForkingTemperature
