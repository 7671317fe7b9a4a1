"""What a step's rows ask of the logits, what is found, and what the rows are going to do.

Knows no method and no engine: a step fills these in, hooks read and change them.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tokenlens.core.columns import (
    INVERSE_TEMPERATURE,
    MAX_ENTRIES,
    MIN_P,
    NOISE_TEMPERATURE,
    TOP_K,
    TOP_P,
)
from tokenlens.core.rows import Rows


class Signals(NamedTuple):
    """Facts of this step, per row; see :func:`tokenlens_kernels.signals_topk`."""

    # [num_rows] float32, nats, of the tempered full-vocabulary distribution; ``None`` where no live
    # request has the need STATISTICS
    entropy: Tensor | None
    # [num_rows] float32, of the same distribution
    max_probability: Tensor | None
    # [num_rows] bool: False where the logits hold a NaN, +inf, or nothing finite
    valid: Tensor
    # [num_rows, width] float32, filtered, sorted, not cut to max_entries, without noise
    probabilities: Tensor
    # [num_rows, width] int64
    ids: Tensor
    # [num_rows] float32: the first two at temperature 1, if a request has the need RAW_SIGNALS
    raw_entropy: Tensor | None = None
    raw_max_probability: Tensor | None = None


@dataclass
class SignalRequest:
    """What this step's rows want from the logits: their latent methods' columns, if active."""

    # [num_rows] each
    active: Tensor
    inverse_temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    max_entries: Tensor
    noise_temperature: Tensor

    @classmethod
    def of(cls, rows: Rows) -> "SignalRequest":
        """No row is active yet."""
        columns = (INVERSE_TEMPERATURE, TOP_K, TOP_P, MIN_P, MAX_ENTRIES, NOISE_TEMPERATURE)
        return cls(rows.constant(False), *(rows[column] for column in columns))


@dataclass
class Proposal:
    """What the rows of one step intend, before the engine has sampled."""

    # [num_rows] bool: the next input is a mixture if the recorded token is the one sampled
    latent: Tensor
    # [num_rows] bool: the token is decided here, not by the engine's sampler
    forced: Tensor
    # [num_rows] int64: the token, where forced
    recorded: Tensor
    # [num_rows, width] float32 and int64: the concept token
    weights: Tensor
    ids: Tensor
    # [num_rows, width] float32: a score of each entry, for trainers
    scores: Tensor | None = None
    # [num_rows] bool: a token of a forced sequence is fed as the mixture where the row is latent
    mixes: Tensor | None = None

    def force(self, where: Tensor, ids: Tensor) -> None:
        """Decide the token of some rows; they are discrete unless a method says otherwise."""
        self.forced = self.forced | where
        self.recorded = torch.where(where, ids, self.recorded)
