"""What top-n-sigma can be asked for (arXiv 2411.07641)."""

from typing import Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from tokenlens.methods._shared.samplers import SamplerMethod


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


CONFIG = TopNSigma
