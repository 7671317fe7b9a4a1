"""Dirichlet noise on concept weights (arXiv 2508.03440, section 4).

``q ~ Dirichlet(alpha * p)`` over the filtered distribution ``p``, then the cut to the largest
entries. Drawn as normalised Gamma variates in log space, so that a tiny concentration cannot turn
every weight into zero. The top entry is *not* a sample of ``p``: it leans to the mode.

=======================  ==============================  =====================================
what                     default                         ``published`` (authors' code)
=======================  ==============================  =====================================
entries in the draw      what the filters keep           the whole vocabulary, then those with
                                                         p > 1e-7 (the same after normalising)
a filtered entry (p=0)   left out                        an error in stock torch (Gamma needs a
                                                         positive concentration); left out here
=======================  ==============================  =====================================
"""

from collections.abc import Mapping

import torch
from tokenlens_kernels import philox
from tokenlens_kernels.signals_topk.naive import cut_and_renormalise
from torch import Tensor

from tokenlens.core.columns import MAX_ENTRIES, POSITION, SEED, Field, Value
from tokenlens.core.method import Admission, Method
from tokenlens.core.proposal import Proposal, SignalRequest, Signals
from tokenlens.core.rows import Rows
from tokenlens.methods.dirichlet_noise.config import DirichletNoise
from tokenlens.spec.registry import AnyMethod

CONCENTRATION = Field("dirichlet_noise.concentration", "float", 1.0)
FLOOR = Field("dirichlet_noise.probability_floor", "float")
DUE = Field("dirichlet_noise.due", "bool", False)


def dirichlet_weights(
    probabilities: Tensor, ids: Tensor, log_gamma: Tensor, floor: Tensor
) -> tuple[Tensor, Tensor]:
    """Dirichlet weights from injected Gamma draws, sorted.

    Parameters
    ----------
    probabilities, ids
        ``[num_rows, width]``: the filtered distribution.
    log_gamma
        ``[num_rows, width]`` float32: logarithms of ``Gamma(alpha * p, 1)`` draws.
    floor
        ``[num_rows]``: entries whose probability is at or below it are left out, but for the
        largest.

    Returns
    -------
    weights, ids
        ``[num_rows, width]`` each; a row without any entry has weights of zero.
    """
    # The largest entry stays whatever the floor: a mixture of nothing is no input.
    largest = (probabilities >= probabilities[:, :1]) & (probabilities > 0)
    live = (probabilities > floor[:, None]) | largest
    scores = torch.where(live, log_gamma, -torch.inf)
    weights = torch.where(live, (scores - scores.amax(dim=1, keepdim=True)).exp(), 0.0)
    weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    weights, order = weights.sort(dim=1, descending=True, stable=True)
    return weights, ids.gather(1, order)


class DirichletNoiseMethod(Method):
    """Replaces the concept token of its rows by a random one around it."""

    def __init__(self) -> None:
        super().__init__("dirichlet_noise", CONCENTRATION, FLOOR, DUE)

    def admit(self, config: AnyMethod, admission: Admission) -> Mapping[Field, Value]:
        assert isinstance(config, DirichletNoise)
        return {CONCENTRATION: config.concentration, FLOOR: config.rules.probability_floor}

    def request_signals(self, rows: Rows, request: SignalRequest) -> None:
        # Not where only a trace looks on: that shows the model's own distribution.
        rows[DUE] = rows[self.on] & request.active

    def reweigh(self, rows: Rows, signals: Signals, proposal: Proposal) -> None:
        on = rows[DUE] & signals.valid & (signals.probabilities[:, 0] > 0)
        concentration = signals.probabilities * rows[CONCENTRATION][:, None]
        log_gamma = philox.gamma(
            concentration, rows[SEED][:, None], rows[POSITION][:, None], signals.ids
        )
        weights, ids = dirichlet_weights(signals.probabilities, signals.ids, log_gamma, rows[FLOOR])
        weights, ids = cut_and_renormalise(weights, ids, rows[MAX_ENTRIES])
        proposal.weights = torch.where(on[:, None], weights, proposal.weights)
        proposal.ids = torch.where(on[:, None], ids, proposal.ids)


STEPS = (DirichletNoiseMethod(),)
