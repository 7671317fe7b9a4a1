"""Control: every mixture is replaced by its top entry.

The visible tokens are chosen exactly as without it, noise included, but what is fed is one token's
embedding. What a method gains over this control, it gains by mixing; with Gumbel noise this *is*
ordinary sampling from the filtered distribution.
"""

from tokenlens.core.method import Method
from tokenlens.core.proposal import Proposal, Signals
from tokenlens.core.rows import Rows


class Top1Method(Method):
    """Turns latent rows discrete and leaves their forced token alone."""

    def __init__(self) -> None:
        super().__init__("top1")

    def gate(self, rows: Rows, signals: Signals, proposal: Proposal) -> None:
        proposal.latent = proposal.latent & ~rows[self.on]


STEPS = (Top1Method(),)
