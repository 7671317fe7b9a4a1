"""top-n-sigma (arXiv 2411.07641): ``z >= max - n * std``, the deviation over the finite logits.

Variants: ``reference`` (unbiased deviation; the reference masks everything where one logit is -inf,
here those are left out), ``strict`` (``>``), ``population`` (llama.cpp: divided by the number of
logits, off at n = 0).
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from tokenlens.core.columns import Field, Value
from tokenlens.core.method import Admission
from tokenlens.core.rows import Rows
from tokenlens.methods._shared.truncation import TruncationMethod
from tokenlens.methods.top_n_sigma.config import TopNSigma
from tokenlens.spec.registry import AnyMethod

SIGMA_VARIANTS = ("reference", "strict", "population")


def top_n_sigma_keep(logits: Tensor, n: Tensor, variant: Tensor) -> Tensor:
    """What top-n-sigma keeps, ``[num_rows, vocab]`` bool.

    Parameters
    ----------
    n
        ``[num_rows]`` float.
    variant
        ``[num_rows]`` int64, index into ``SIGMA_VARIANTS``.
    """
    logits = logits.float()
    finite = logits.isfinite()
    count = finite.sum(dim=1)
    mean = torch.where(finite, logits, 0.0).sum(dim=1) / count
    squares = torch.where(finite, logits - mean[:, None], 0.0).square().sum(dim=1)
    std = (squares / torch.where(variant == 2, count, count - 1).clamp_min(1)).sqrt()
    floor = (logits.amax(dim=1) - n * std)[:, None]
    keep = torch.where((variant == 1)[:, None], logits > floor, logits >= floor)
    return keep | ((variant == 2) & (n == 0))[:, None]


class TopNSigmaMethod(TruncationMethod):
    """top-n-sigma."""

    N = Field("top_n_sigma.n", "float")
    VARIANT = Field("top_n_sigma.variant", "int")

    def __init__(self) -> None:
        super().__init__("top_n_sigma", self.N, self.VARIANT)

    def admit(self, config: AnyMethod, admission: Admission) -> Mapping[Field, Value]:
        assert isinstance(config, TopNSigma)
        variant = SIGMA_VARIANTS.index(config.variant)
        return {**super().admit(config, admission), self.N: config.n, self.VARIANT: variant}

    def keep(self, logits: Tensor, rows: Rows) -> Tensor:
        keep = top_n_sigma_keep(logits, rows[self.N], rows[self.VARIANT])
        # The largest stays: where all are equal nothing is above it, and a deviation may overflow.
        return keep | (logits == logits.amax(dim=1, keepdim=True))


STEPS = (TopNSigmaMethod(),)
