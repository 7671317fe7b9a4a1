"""Fields of methods that shape the distribution which the engine samples from. No torch."""

from typing import ClassVar, Literal

from pydantic import Field

from tokenlens.spec.base import LEAST, MethodBase


class SamplerMethod(MethodBase):
    """A method that shapes the distribution the engine samples from."""

    active: Literal["thinking", "output"] = Field(
        "output", description="acts while thinking, or in the answer too"
    )


class EntropyTemperature(SamplerMethod):
    """A temperature for each step. The logits are divided by it before the engine divides."""

    family: ClassVar[tuple[str, ...]] = ("temperature",)

    engine_temperature: float = Field(
        1.0,
        ge=LEAST,
        le=100,
        description="what the engine divides by afterwards: it is multiplied back in; 1 = pin the"
        " engine's temperature to 1",
    )


class AdaptiveTemperature(EntropyTemperature):
    """One that adapts around a temperature, down to a floor."""

    temperature: float = Field(1.0, ge=LEAST, le=100, description="T0, around which it adapts")
    floor: float = Field(0.05, ge=LEAST, le=100, description="never below this")
