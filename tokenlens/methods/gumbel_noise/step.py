"""Gumbel-softmax noise on concept weights (arXiv 2508.03440, section 4; also Soft Thinking's code).

``w' = softmax((ln w + g) / tau)`` over the entries that the filters and the cut have kept, then
sorted again, with one standard Gumbel draw ``g`` for each entry, keyed on seed, position and token
id. The top entry is then an exact sample of ``w``, whatever tau is.

``published`` and default do the same; the authors' code draws from the device's generator, so that
its noise depends on the batch.
"""

from collections.abc import Mapping

from tokenlens_kernels.signals_topk.naive import gumbel_softmax

from tokenlens.core.columns import NOISE_TEMPERATURE, Field, Value
from tokenlens.core.method import Admission, Method
from tokenlens.methods.gumbel_noise.config import GumbelNoise
from tokenlens.spec.registry import AnyMethod

__all__ = ["GumbelNoiseMethod", "gumbel_softmax"]


class GumbelNoiseMethod(Method):
    """Asks the signals op for noise: it is drawn where the weights are made."""

    def __init__(self) -> None:
        super().__init__("gumbel_noise")

    def admit(self, config: AnyMethod, admission: Admission) -> Mapping[Field, Value]:
        assert isinstance(config, GumbelNoise)
        return {NOISE_TEMPERATURE: config.temperature}


STEPS = (GumbelNoiseMethod(),)
