"""What the temperature of forking tokens can be asked for (arXiv 2506.01939)."""

from typing import Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from tokenlens.methods._shared.samplers import EntropyTemperature
from tokenlens.spec.base import LEAST


class ForkingTemperature(EntropyTemperature):
    """One temperature where the entropy is high, another where it is not (arXiv 2506.01939)."""

    method: Literal["forking_temperature"] = "forking_temperature"
    threshold: float = Field(
        0.672,
        ge=0,
        le=100,
        description="nats; a token above it is a forking token. 0.672 = the 80th percentile of"
        " Qwen3-8B on AIME at temperature 1: measure it on another model",
    )
    high: float = Field(
        1.2, ge=LEAST, le=100, description="temperature of forking tokens (the default is ours)"
    )
    low: float = Field(1.0, ge=LEAST, le=100, description="temperature of all others")

    @model_validator(mode="after")
    def _two_temperatures(self) -> "ForkingTemperature":
        if self.high == self.low:
            raise PydanticCustomError(
                "not_allowed",
                "allowed: {allowed}",
                {"allowed": "a high and a low that differ: one temperature is the engine's own"},
            )
        return self


CONFIG = ForkingTemperature
