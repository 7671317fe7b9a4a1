"""Latent-Thoughts-Tuning (arXiv 2602.10229): ``alpha * h + (1 - alpha) * sum_v P(v) E(v)`` is fed.

``h`` is the last hidden state and ``P`` the whole vocabulary's probabilities. A step is latent
where the largest probability is below the gate's bound, else the engine samples it. The paper
inserts a token for each latent step; here the visible token is the arg-max. The factor, the bound
and the layer are not known from any code; ``h`` is behind the final norm.
"""

from collections.abc import Mapping

from tokenlens.core.columns import BASE_WEIGHT, DENSE, Field, Value
from tokenlens.core.engine_vectors import HIDDEN, RESCALE, SHARE
from tokenlens.core.method import Admission, Method
from tokenlens.methods._shared.gate.step import GATE
from tokenlens.methods.latent_fusion.config import LatentFusion
from tokenlens.methods.soft_thinking.step import SOFT_THINKING
from tokenlens.spec.registry import AnyMethod


class LatentFusionMethod(Method):
    """Asks the engine for both vectors; the sum is made where they are."""

    def __init__(self) -> None:
        super().__init__("latent_fusion")

    def admit(self, config: AnyMethod, admission: Admission) -> Mapping[Field, Value]:
        assert isinstance(config, LatentFusion)
        return {
            DENSE: True,
            HIDDEN: True,
            SHARE: config.alpha,
            RESCALE: config.rescale,
            BASE_WEIGHT: 1.0,
        }


STEPS = (SOFT_THINKING, LatentFusionMethod(), GATE)
