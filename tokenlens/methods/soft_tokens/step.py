"""Soft Tokens (arXiv 2509.19170): Gaussian noise on what is fed, which the engine adds.

The rest of it is Soft Thinking's step, with other settings.
"""

from collections.abc import Mapping

from tokenlens.core.columns import NOISE_SCALE, Field, Value
from tokenlens.core.method import Admission, Method
from tokenlens.methods.soft_thinking.step import SOFT_THINKING
from tokenlens.methods.soft_tokens.config import SoftTokens
from tokenlens.spec.registry import AnyMethod


class EmbeddingNoiseMethod(Method):
    """Asks the engine for Gaussian noise on what Soft Tokens feeds."""

    def __init__(self) -> None:
        super().__init__("embedding_noise")

    def serves(self, config: AnyMethod) -> bool:
        return isinstance(config, SoftTokens) and config.noise_scale > 0

    def admit(self, config: AnyMethod, admission: Admission) -> Mapping[Field, Value]:
        assert isinstance(config, SoftTokens)
        # The root of the width, which only the engine knows, is marked by the sign.
        return {NOISE_SCALE: config.noise_scale * (1 if config.rms == "coordinate" else -1)}


STEPS = (SOFT_THINKING, EmbeddingNoiseMethod())
