"""What ThinkRouter can be asked for (arXiv 2602.11683)."""

from typing import ClassVar, Literal

from pydantic import Field

from tokenlens.methods._shared.gate.fields import Gate
from tokenlens.methods.soft_thinking.config import ConceptTokens


class ThinkRouter(ConceptTokens):
    """Soft Thinking, but for steps at which the model is not sure of its top token.

    They are sampled by the engine. Where the probability is taken is ``gate.of``; the paper does
    not say, and the default is after temperature and before every filter.
    """

    family: ClassVar[tuple[str, ...]] = ("latent", "gate")

    method: Literal["think_router"] = "think_router"
    gate: Gate = Field(
        Gate(signal="max_probability", enter=0.6), description="latent where the model is sure"
    )


CONFIG = ThinkRouter
