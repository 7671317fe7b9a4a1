"""top-H (arXiv 2509.02510): the longest run of the most probable tokens, the first always kept.

It is the longest with ``H(run) <= alpha * H``. Variants: ``paper`` (the run renormalised, the whole
vocabulary), ``hf`` (sums of ``-p ln p`` in the renormalised top 100), ``author`` (the same without
renormalising).
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from tokenlens.core.columns import Field, Value
from tokenlens.core.method import Admission
from tokenlens.core.rows import Rows
from tokenlens.methods._shared.truncation import TruncationMethod
from tokenlens.methods.top_h.config import TopH
from tokenlens.spec.registry import AnyMethod

TOP = 100
"""Tokens that the variants of top-H from code look at."""

H_VARIANTS = ("paper", "hf", "author")


def top_h_keep(logits: Tensor, alpha: Tensor, variant: Tensor, temperature: Tensor) -> Tensor:
    """What top-H keeps, ``[num_rows, vocab]`` bool.

    Parameters
    ----------
    alpha, temperature
        ``[num_rows]`` float.
    variant
        ``[num_rows]`` int64, index into ``H_VARIANTS``.
    """
    p = torch.softmax(logits.double() / temperature[:, None], dim=1)
    p, order = p.sort(dim=1, descending=True, stable=True)
    in_top = torch.arange(p.shape[1], device=p.device) < TOP
    of_paper, of_hf = (variant == 0)[:, None], (variant == 1)[:, None]
    p = torch.where(of_paper | in_top, p, 0.0)
    p = torch.where(of_hf, p / p.sum(dim=1, keepdim=True), p)
    # [num_rows, vocab]: sums of -p ln p over the first tokens, the entropy of each run
    summed, mass = torch.special.entr(p).cumsum(dim=1), p.cumsum(dim=1)
    run = torch.where(of_paper, summed / mass + mass.log(), summed)
    # Sums of many small numbers: at alpha = 1 the last token must fit.
    fits = run <= alpha[:, None] * summed[:, -1:] + 1e-9
    fits = fits.long().cumprod(dim=1).bool() & (of_paper | in_top)
    fits[:, 0] = True
    return torch.zeros_like(fits).scatter(1, order, fits)


class TopHMethod(TruncationMethod):
    """top-H."""

    ALPHA = Field("top_h.alpha", "float", 1.0)
    VARIANT = Field("top_h.variant", "int")
    TEMPERATURE = Field("top_h.temperature", "float", 1.0)

    def __init__(self) -> None:
        super().__init__("top_h", self.ALPHA, self.VARIANT, self.TEMPERATURE)

    def admit(self, config: AnyMethod, admission: Admission) -> Mapping[Field, Value]:
        assert isinstance(config, TopH)
        return {
            **super().admit(config, admission),
            self.ALPHA: config.alpha,
            self.VARIANT: H_VARIANTS.index(config.variant),
            self.TEMPERATURE: config.temperature,
        }

    def keep(self, logits: Tensor, rows: Rows) -> Tensor:
        columns = (rows[column] for column in (self.ALPHA, self.VARIANT, self.TEMPERATURE))
        return top_h_keep(logits, *columns)


STEPS = (TopHMethod(),)
