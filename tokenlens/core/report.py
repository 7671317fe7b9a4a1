"""What one committed step was, for every row of the batch. Knows no request and no engine."""

from typing import Final, NamedTuple

from torch import Tensor

from tokenlens.core.columns import (
    FORCED_STEPS,
    GENERATED,
    INVALID_STEPS,
    LATENT_STEPS,
    THINKING_TOKENS,
)
from tokenlens.trace.reports import TOTALS, TRIP_SCALE

TOTAL_COLUMNS: Final = dict(
    zip(
        TOTALS, (GENERATED, THINKING_TOKENS, LATENT_STEPS, FORCED_STEPS, INVALID_STEPS), strict=True
    )
)
"""What is counted of every request, by name."""
FRACTION: Final = TRIP_SCALE
"""What a fraction is multiplied by that is told as a count."""
RESERVED: Final = ("mode_changes", "others")
"""Names of a trace's totals that no column counts."""


class StepReport(NamedTuple):
    """What one committed step was, per row; the columns of a trace record."""

    # [num_rows] int64: of the token that was committed
    position: Tensor
    # [num_rows] int64: the phase that the token was decided in
    phase: Tensor
    # [num_rows] int64
    token: Tensor
    # [num_rows] bool: the token's place in the sequence is fed as a mixture
    latent: Tensor
    # [num_rows] bool: the token was decided here, not by the engine's sampler
    forced: Tensor
    # [num_rows] bool: False where the logits, or what was made of them, could not be used
    valid: Tensor
    # [num_rows] bool: False where no token was committed (not sampled, or finished before)
    advanced: Tensor
    # [num_rows] float32; 0 where no method asked for signals
    entropy: Tensor
    max_probability: Tensor
    # [num_rows, width] float32 and int64; meaningful where latent
    weights: Tensor
    ids: Tensor
    # [num_rows] float32: of the step's noise, for trainers
    log_probability: Tensor
    # [num_rows, width] float32, or [num_rows, 0] where no live request has any
    scores: Tensor
    # [num_rows, len(records)] float32, or [num_rows, 0] where no live request has a full trace
    records: Tensor
