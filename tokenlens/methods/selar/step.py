"""SeLaR's contrastive push (arXiv 2604.08299): a mixture moved away from its top token.

``x = b + lambda * h * (b - E[top])`` with ``b`` the mixture of the top k entries and ``h`` their
entropy as a fraction. It is a concept token whose top entry may weigh less than nothing. Whether a
step is latent is the gate's to say.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from tokenlens.core.columns import MAX_ENTRIES, Field, Value
from tokenlens.core.method import Admission, Method
from tokenlens.core.proposal import Proposal, Signals
from tokenlens.core.rows import Rows
from tokenlens.methods._shared.gate.step import GATE
from tokenlens.methods.selar.config import Selar
from tokenlens.spec.registry import AnyMethod

PUSH = Field("selar.push", "float")


def contrast(weights: Tensor, entropy: Tensor, push: Tensor) -> Tensor:
    """Weights of the pushed mixture.

    Parameters
    ----------
    weights
        ``[num_rows, width]``, the largest first, sum 1.
    entropy
        ``[num_rows]``, as a fraction of the largest one that the entries can have.
    push
        ``[num_rows]``: lambda.

    Returns
    -------
    Tensor
        ``[num_rows, width]``; sum 1, the first may be negative.
    """
    strength = (push * entropy.clamp(0, 1))[:, None]
    pushed = weights * (1 + strength)
    return torch.cat([pushed[:, :1] - strength, pushed[:, 1:]], dim=1)


class SelarMethod(Method):
    """Pushes the concept tokens of its rows."""

    def __init__(self) -> None:
        super().__init__("selar", PUSH)

    def admit(self, config: AnyMethod, admission: Admission) -> Mapping[Field, Value]:
        assert isinstance(config, Selar)
        return {PUSH: config.push}

    def reweigh(self, rows: Rows, signals: Signals, proposal: Proposal) -> None:
        p = signals.probabilities
        entries = rows[MAX_ENTRIES][:, None]
        q = torch.where(torch.arange(p.shape[1], device=p.device) < entries, p, 0.0)
        q = q / q.sum(dim=1, keepdim=True).clamp(min=torch.finfo(q.dtype).tiny)
        largest = entries[:, 0].clamp(min=2).log()
        entropy = torch.special.entr(q).sum(dim=1) / largest
        on = rows[self.on] & signals.valid & (proposal.weights[:, 0] > 0)
        weights = contrast(proposal.weights, entropy, rows[PUSH])
        proposal.weights = torch.where(on[:, None], weights, proposal.weights)


STEPS = (SelarMethod(), GATE)
