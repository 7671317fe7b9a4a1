"""What top-H can be asked for (arXiv 2509.02510)."""

from typing import Literal

from pydantic import Field

from tokenlens.methods._shared.samplers import SamplerMethod
from tokenlens.spec.base import LEAST


class TopH(SamplerMethod):
    """Keep the largest set whose entropy is at most a share of the whole's (arXiv 2509.02510)."""

    method: Literal["top_h"] = "top_h"
    alpha: float = Field(0.4, ge=LEAST, le=1, description="share of the entropy")
    variant: Literal["paper", "hf", "author"] = Field(
        "paper", description="hf: TopHLogitsWarper; author: the repository; both in the top 100"
    )
    temperature: float = Field(1.0, ge=LEAST, le=100, description="of the probabilities")


CONFIG = TopH
