"""Truncations of the distribution: min-p, top-n-sigma, top-H.

They run before anything else looks at the logits, so that a concept token's own filters see what is
left. Tokens that are not kept get -inf. A row without anything usable stays as it is.

min-p (arXiv 2407.01082): ``p >= min_p * p_max`` at a temperature of its own.

top-n-sigma (arXiv 2411.07641): ``z >= max - n * std``, the deviation over the finite logits.
Variants: ``reference`` (unbiased deviation; the reference masks everything where one logit is -inf,
here those are left out), ``strict`` (``>``), ``population`` (llama.cpp: divided by the number of
logits, off at n = 0).

top-H (arXiv 2509.02510): the longest run of the most probable tokens, the first always kept, with
``H(run) <= alpha * H``. Variants: ``paper`` (the run renormalised, the whole vocabulary), ``hf``
(sums of ``-p ln p`` in the renormalised top 100), ``author`` (the same without renormalising).
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from tokenlens.core.columns import Field, Value
from tokenlens.core.method import Admission, Method
from tokenlens.core.rows import Rows
from tokenlens.methods.logits import truncate, usable
from tokenlens.spec.registry import AnyMethod
from tokenlens.spec.samplers import MAX_TOKENS_TO_KEEP, MinP, SamplerMethod, TopH, TopNSigma

TOP = 100
"""Tokens that the variants of top-H from code look at."""

SIGMA_VARIANTS = ("reference", "strict", "population")
H_VARIANTS = ("paper", "hf", "author")


def min_p_keep(logits: Tensor, min_p: Tensor, temperature: Tensor, least: Tensor) -> Tensor:
    """What min-p keeps, ``[num_rows, vocab]`` bool.

    Parameters
    ----------
    logits
        ``[num_rows, vocab]``.
    min_p, temperature, least
        ``[num_rows]``; ``least`` tokens are kept at least, int64 up to ``MAX_TOKENS_TO_KEEP``.
    """
    p = torch.softmax(logits.float() / temperature[:, None], dim=1)
    keep = p >= (min_p * p.amax(dim=1))[:, None]
    best = logits.topk(min(MAX_TOKENS_TO_KEEP, logits.shape[1]), dim=1).indices
    among = torch.arange(best.shape[1], device=best.device) < least[:, None]
    return keep.scatter(1, best, keep.gather(1, best) | among)


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


class TruncationMethod(Method):
    """What the three have in common: when they are on, and how a row is cut."""

    def __init__(self, name: str, *fields: Field) -> None:
        self.always = Field(f"{name}.always", "bool", False)
        super().__init__(name, self.always, *fields)

    def admit(self, config: AnyMethod, admission: Admission) -> Mapping[Field, Value]:
        assert isinstance(config, SamplerMethod)
        return {self.always: config.active == "output"}

    def edit(self, logits: Tensor, rows: Rows) -> Tensor:
        real = logits[:, : rows.vocab_size]
        due = rows[self.on] & (rows[self.always] | rows.thinking)
        due, keep = due & usable(real), self.keep(real, rows)
        if rows.traced:
            rows.record(self.name, torch.where(due, keep.sum(dim=1), 0))
        return truncate(logits, due, keep)

    def keep(self, logits: Tensor, rows: Rows) -> Tensor:
        """The tokens that stay, ``[num_rows, vocab]`` bool."""
        raise NotImplementedError


class MinPMethod(TruncationMethod):
    """min-p."""

    MIN_P = Field("min_p.min_p", "float")
    TEMPERATURE = Field("min_p.temperature", "float", 1.0)
    LEAST = Field("min_p.min_tokens_to_keep", "int", 1)

    def __init__(self) -> None:
        super().__init__("min_p", self.MIN_P, self.TEMPERATURE, self.LEAST)

    def admit(self, config: AnyMethod, admission: Admission) -> Mapping[Field, Value]:
        assert isinstance(config, MinP)
        return {
            **super().admit(config, admission),
            self.MIN_P: config.min_p,
            self.TEMPERATURE: config.temperature,
            self.LEAST: config.min_tokens_to_keep,
        }

    def keep(self, logits: Tensor, rows: Rows) -> Tensor:
        return min_p_keep(logits, rows[self.MIN_P], rows[self.TEMPERATURE], rows[self.LEAST])


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
