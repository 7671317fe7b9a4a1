"""``concept_mixture`` on a CPU: ``embedding_bag`` over the live entries only.

Reading values on the host is free here, and only here: this file never sees device tensors.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

# Where the entries of a single row begin
_FIRST = np.zeros(1, dtype=np.int64)


def concept_mixture(
    table: Tensor,
    ids: Tensor,
    weights: Tensor,
    scale: float,
    shard_start: int,
    out_dtype: torch.dtype,
) -> Tensor:
    """The op, see `tokenlens_kernels.concept_mixture`."""
    if len(ids) == 1 and not shard_start and table.dtype == torch.float32:
        length = _leading(table, ids, weights)
        if length:
            starts = torch.from_numpy(_FIRST)
            mixture = _sum(table, ids[0, :length], starts, weights[0, :length])
            return mixture if scale == 1.0 else mixture * scale
    # A step costs what its small calls cost, and on arrays this small numpy's are the cheaper ones.
    places, shares = ids.numpy(), weights.numpy()
    local = places - shard_start if shard_start else places
    # As unsigned numbers, ids before the shard are far behind it.
    read = (shares != 0) & (local.view(np.uint64) < table.shape[0])
    counts = read.sum(axis=1)
    ends = counts.cumsum()
    live_ids = torch.from_numpy(local[read])
    live_weights = torch.from_numpy(shares[read])
    starts = torch.from_numpy(ends - counts)
    if table.dtype != torch.float32:
        # embedding_bag wants weights in the table's dtype and would round them; the live rows are
        # few, so they are widened instead.
        table = table.index_select(0, live_ids).to(torch.float32)
        live_ids = torch.arange(live_ids.shape[0])
    mixture = _sum(table, live_ids, starts, live_weights)
    if 1 in counts.tolist():
        # A sum begins with 0, which takes the sign off a -0.0: a lookup does not.
        rows = torch.from_numpy(np.flatnonzero(counts == 1))
        entries = starts[rows]
        values = table.index_select(0, live_ids[entries]) * live_weights[entries, None]
        mixture.index_copy_(0, rows, values)
    if scale != 1.0:
        mixture = mixture * scale
    return mixture if mixture.dtype == out_dtype else mixture.to(out_dtype)


def _leading(table: Tensor, ids: Tensor, weights: Tensor) -> int:
    """How many live entries a single row begins with.

    0 if they are fewer than two, others follow, or one is not in the table.
    """
    # Of a single row, numbers of Python's own are the cheapest to look at.
    shares = weights.tolist()[0]
    length: int = shares.index(0.0) if 0.0 in shares else len(shares)
    if length < 2 or any(shares[length:]):
        return 0
    places = ids.tolist()[0][:length]
    return length if min(places) >= 0 and max(places) < len(table) else 0


def _sum(table: Tensor, ids: Tensor, starts: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of the table's rows, one for each start."""
    # What `torch.nn.functional.embedding_bag` calls with mode="sum".
    mixture, *_ = torch.embedding_bag(table, ids, starts, False, 0, False, weights)
    return mixture
