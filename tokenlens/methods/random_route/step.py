"""Control: chance decides which thinking steps are latent.

The comparison for every gate (ThinkRouter, arXiv 2602.11683, reports it; most papers do not): at
the same share of latent steps, does it matter *which* steps are latent? A discrete step is sampled
by the engine with the user's own parameters.
"""

from collections.abc import Mapping

from tokenlens_kernels import philox

from tokenlens.core.columns import POSITION, SEED, Field, Value
from tokenlens.core.method import Admission, Method
from tokenlens.core.proposal import Proposal, Signals
from tokenlens.core.rows import Rows
from tokenlens.methods.random_route.config import RandomRoute
from tokenlens.spec.registry import AnyMethod

LATENT_SHARE = Field("random_route.latent_share", "float", 1.0)


class RandomRouteMethod(Method):
    """One draw a position: below the share the step stays latent."""

    def __init__(self) -> None:
        super().__init__("random_route", LATENT_SHARE)

    def admit(self, config: AnyMethod, admission: Admission) -> Mapping[Field, Value]:
        assert isinstance(config, RandomRoute)
        return {LATENT_SHARE: config.latent_share}

    def gate(self, rows: Rows, signals: Signals, proposal: Proposal) -> None:
        place = philox.offset(rows[POSITION], 0, philox.GATE)
        discrete = philox.uniform(rows[SEED], place) >= rows[LATENT_SHARE]
        routed = rows[self.on] & proposal.latent & discrete
        proposal.latent = proposal.latent & ~routed
        proposal.forced = proposal.forced & ~routed


STEPS = (RandomRouteMethod(),)
