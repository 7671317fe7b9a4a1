"""What min-p can be asked for (arXiv 2407.01082)."""

from typing import Literal

from pydantic import Field

from tokenlens.methods._shared.samplers import SamplerMethod
from tokenlens.spec.base import LEAST

MAX_TOKENS_TO_KEEP = 16


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


CONFIG = MinP
