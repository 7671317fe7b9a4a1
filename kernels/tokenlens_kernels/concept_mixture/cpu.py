"""``concept_mixture`` on a processor: ``embedding_bag`` over the live entries only.

Reading values on the host is free here, and only here: this file never sees device tensors.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def concept_mixture(
    table: Tensor,
    ids: Tensor,
    weights: Tensor,
    scale: float,
    shard_start: int,
    out_dtype: torch.dtype,
) -> Tensor:
    """The op, see `tokenlens_kernels.concept_mixture`."""
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
    mixture = F.embedding_bag(
        live_ids,
        table,
        starts,
        mode="sum",
        per_sample_weights=live_weights,
    )
    if 1 in counts.tolist():
        # A sum begins with 0, which takes the sign off a -0.0: a lookup does not.
        rows = torch.from_numpy(np.flatnonzero(counts == 1))
        entries = starts[rows]
        values = table.index_select(0, live_ids[entries]) * live_weights[entries, None]
        mixture.index_copy_(0, rows, values)
    if scale != 1.0:
        mixture = mixture * scale
    return mixture if mixture.dtype == out_dtype else mixture.to(out_dtype)
