"""What ``dense_mixture`` means, in plain torch and float64."""

from __future__ import annotations

import torch
from torch import Tensor


def dense_mixture(
    logits: Tensor,
    table: Tensor,
    active: Tensor,
    inverse_temperature: Tensor,
    vocab_size: int,
    scale: float,
    shard_start: int,
    out_dtype: torch.dtype,
) -> Tensor:
    """The op, see `tokenlens_kernels.dense_mixture`."""
    z = logits[:, :vocab_size].to(torch.float32)
    highest = z.amax(-1)
    computed = (active & highest.isfinite()).unsqueeze(-1)
    z = torch.where(computed, z, 0.0)
    shifted = (z - z.amax(-1, keepdim=True)) * inverse_temperature.unsqueeze(-1)
    probabilities = shifted.double().softmax(-1)
    stop = min(vocab_size, shard_start + table.shape[0])
    part = probabilities[:, shard_start:stop]
    mixture = (part @ table[: part.shape[1]].double()).to(torch.float32)
    computed = computed & mixture.isfinite().all(dim=-1, keepdim=True)
    return torch.where(computed, mixture * scale, 0.0).to(out_dtype)
