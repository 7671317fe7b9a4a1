"""What ``concept_mixture`` means, in plain torch: float64 sums, one rounding to float32."""

from __future__ import annotations

import torch
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
    local = ids - shard_start
    read = (weights != 0) & (local >= 0) & (local < table.shape[0])
    rows = table[torch.where(read, local, 0)].to(torch.float64)
    # A dead entry must not turn an infinity of the row it points at into a NaN.
    products = torch.where(read.unsqueeze(-1), rows * weights.unsqueeze(-1), 0.0)
    mixture = products.sum(1).to(torch.float32)
    return (mixture * scale).to(out_dtype)
