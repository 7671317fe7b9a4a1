"""One look at a step's logits: what the rows asked for, found for all of them at once.

Knows no method: a request for signals is columns of numbers.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from tokenlens.core.columns import POSITION, SEED
from tokenlens.core.proposal import SignalRequest, Signals
from tokenlens.core.rows import Rows
from tokenlens.spec.needs import Need


class Observation(NamedTuple):
    """What a look at the logits finds, per row."""

    signals: Signals
    # [num_rows] float32; 0 where no method asked
    entropy: Tensor
    max_probability: Tensor
    # [num_rows, width] float32 and int64: the concept token, with the op's own noise
    weights: Tensor
    ids: Tensor


def observe(
    op: Callable[..., tuple[Tensor, ...]],
    logits: Tensor,
    rows: Rows,
    asked: SignalRequest,
    width: int,
) -> Observation:
    """Signals and concept tokens of the rows that asked.

    Parameters
    ----------
    op
        :func:`tokenlens_kernels.signals_topk`, or a test's.
    logits
        ``[num_rows, >= vocab_size]``, edited, without holes.
    width
        Entries of a concept token.
    """
    statistics = Need.STATISTICS in rows.needs
    found = op(
        logits,
        active=asked.active,
        inverse_temperature=asked.inverse_temperature,
        top_k=asked.top_k,
        top_p=asked.top_p,
        min_p=asked.min_p,
        max_entries=asked.max_entries,
        noise_temperature=asked.noise_temperature,
        seed=rows[SEED],
        position=rows[POSITION],
        vocab_size=rows.vocab_size,
        width=width,
        statistics=statistics,
    )
    logsumexp, entropy, max_probability, probabilities, ids, weights, weight_ids = found
    signals = Signals(
        entropy if statistics else None,
        max_probability if statistics else None,
        # The op marks unusable rows with NaN.
        logsumexp == logsumexp,
        probabilities,
        ids,
    )
    if Need.RAW_SIGNALS in rows.needs:
        raw_entropy, raw_max_probability = _raw_signals(op, logits, rows, asked)
        signals = signals._replace(raw_entropy=raw_entropy, raw_max_probability=raw_max_probability)
    return Observation(signals, entropy, max_probability, weights, weight_ids)


def _raw_signals(
    op: Callable[..., tuple[Tensor, ...]], logits: Tensor, rows: Rows, asked: SignalRequest
) -> tuple[Tensor, Tensor]:
    """Entropy and maximum probability at temperature 1: a second look at the logits."""
    one = torch.ones_like(asked.top_k)
    found = op(
        logits,
        active=asked.active,
        inverse_temperature=torch.ones_like(asked.inverse_temperature),
        top_k=one,
        top_p=torch.ones_like(asked.top_p),
        min_p=torch.zeros_like(asked.min_p),
        max_entries=one,
        noise_temperature=torch.zeros_like(asked.noise_temperature),
        seed=rows[SEED],
        position=rows[POSITION],
        vocab_size=rows.vocab_size,
        width=1,
    )
    return found[1], found[2]
