"""Temperatures that follow the entropy, and truncations, applied before the engine's sampler."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from tokenlens.spec.base import LEAST, QUIRKS, MethodBase, StrictModel

MAX_TOKENS_TO_KEEP = 16


class SamplerMethod(MethodBase):
    """A method that shapes the distribution the engine samples from."""

    active: Literal["thinking", "output"] = Field(
        "output", description="acts while thinking, or in the answer too"
    )


class AdaptiveTemperature(SamplerMethod):
    """A temperature for each step. The logits are divided by it before the engine divides."""

    family: ClassVar[tuple[str, ...]] = ("temperature",)

    temperature: float = Field(1.0, ge=LEAST, le=100, description="T0, around which it adapts")
    floor: float = Field(0.05, ge=LEAST, le=100, description="never below this")
    engine_temperature: float = Field(
        1.0,
        ge=LEAST,
        le=100,
        description="what the engine divides by afterwards: it is multiplied back in; 1 = pin the"
        " engine's temperature to 1",
    )


class Edt(AdaptiveTemperature):
    """Entropy-based dynamic temperature (arXiv 2403.14541): ``T0 * base ** (theta / entropy)``."""

    published: ClassVar[Mapping[str, Any]] = {"floor": 1e-6}

    method: Literal["edt"] = "edt"
    base: float = Field(0.8, ge=LEAST, le=1, description="N: raised to theta / entropy")
    theta: float = Field(1.0, ge=0, le=100, description="in nats; 0 = the temperature is fixed")


class HapoQuirks(StrictModel):
    """What HAPO's code does, and its paper does not say."""

    sign: Literal["paper", "as_given"] = Field(
        "paper", description="as_given: a negative scale_neg makes low entropies hotter"
    )


class Hapo(AdaptiveTemperature):
    """HAPO's temperature (arXiv 2509.16591), with the statistics of the trainer's last step."""

    published: ClassVar[Mapping[str, Any]] = {"floor": 1e-6, "quirks": {"sign": "as_given"}}

    method: Literal["hapo"] = "hapo"
    median: float = Field(..., ge=-100, le=100, description="of ln(entropy)")
    std: float = Field(..., ge=0, le=100, description="of ln(entropy)")
    scale_pos: float = Field(
        ..., ge=-1e6, le=1e6, description="multiplies (ln(entropy) - median) / std where positive"
    )
    scale_neg: float = Field(
        ..., ge=-1e6, le=1e6, description="multiplies (ln(entropy) - median) / std where negative"
    )
    strength: float = Field(0.05, ge=0, lt=1, description="the largest change, as a share")
    quirks: HapoQuirks | None = QUIRKS


class MinP(SamplerMethod):
    """Drop tokens less probable than a share of the most probable one (arXiv 2407.01082)."""

    method: Literal["min_p"] = "min_p"
    min_p: float = Field(0.05, ge=0, le=1, description="relative to the largest probability")
    temperature: float = Field(
        1.0, ge=LEAST, le=100, description="of the probabilities; the engine's = truncate after it"
    )
    min_tokens_to_keep: int = Field(
        1, ge=1, le=MAX_TOKENS_TO_KEEP, description="the most probable ones stay in any case"
    )


class TopNSigma(SamplerMethod):
    """Keep logits within n standard deviations of the largest (arXiv 2411.07641)."""

    method: Literal["top_n_sigma"] = "top_n_sigma"
    n: float = Field(1.0, ge=0, le=1000, description="standard deviations")
    variant: Literal["reference", "strict", "population"] = Field(
        "reference",
        description="strict: > for >=, the vLLM patch; population: llama.cpp's deviation, 0 = off",
    )

    @model_validator(mode="after")
    def _keeps_something(self) -> "TopNSigma":
        if self.variant == "strict" and self.n == 0:
            raise PydanticCustomError(
                "not_allowed",
                "allowed: {allowed}",
                {"allowed": "n above 0 with variant strict, which would drop every token"},
            )
        return self


class TopH(SamplerMethod):
    """Keep the largest set whose entropy is at most a share of the whole's (arXiv 2509.02510)."""

    method: Literal["top_h"] = "top_h"
    alpha: float = Field(0.4, ge=LEAST, le=1, description="share of the entropy")
    variant: Literal["paper", "hf", "author"] = Field(
        "paper", description="hf: TopHLogitsWarper; author: the repository; both in the top 100"
    )
    temperature: float = Field(1.0, ge=LEAST, le=100, description="of the probabilities")
