"""``dense_mixture`` on a CPU: the vocabulary in chunks, each through one matrix product.

Reading ``active`` on the host is free here, and only here: this file never sees device tensors.
"""

from __future__ import annotations

import torch
from torch import Tensor

_CHUNK = 2048
# Every product has this many rows, padded with zeros: a matrix library takes other paths for other
# shapes, and a row's bits would depend on its batch.
_BLOCK_ROWS = 16


def _mix_block(
    z: Tensor,
    table: Tensor,
    inverse_temperature: Tensor,
    vocab_size: int,
    shard_start: int,
) -> Tensor:
    num_rows, hidden = z.shape[0], table.shape[1]
    highest = z.amax(-1, keepdim=True)
    mass = torch.zeros(num_rows, dtype=torch.float64)
    total = torch.zeros(_BLOCK_ROWS, hidden)
    padded = torch.zeros(_BLOCK_ROWS, _CHUNK)
    stop = min(vocab_size, shard_start + table.shape[0])
    for start in range(0, vocab_size, _CHUNK):
        end = min(start + _CHUNK, vocab_size)
        part = torch.exp((z[:, start:end] - highest) * inverse_temperature)
        mass += part.sum(-1).double()
        first, last = max(start, shard_start), min(end, stop)
        if first < last:
            padded[:num_rows, : last - first] = part[:, first - start : last - start]
            rows = table[first - shard_start : last - shard_start].to(torch.float32)
            total.addmm_(padded[:, : last - first], rows)
    return total[:num_rows].double().div_(mass.unsqueeze(-1)).float()


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
    out = table.new_zeros((logits.shape[0], table.shape[1]), dtype=torch.float32)
    for rows in torch.split(active.nonzero().flatten(), _BLOCK_ROWS):
        z = logits.index_select(0, rows)[:, :vocab_size].to(torch.float32)
        valid = z.amax(-1, keepdim=True).isfinite()
        mixture = _mix_block(
            torch.where(valid, z, 0.0),
            table,
            inverse_temperature[rows].unsqueeze(-1),
            vocab_size,
            shard_start,
        )
        valid = valid & mixture.isfinite().all(dim=-1, keepdim=True)
        out.index_copy_(0, rows, torch.where(valid, mixture * scale, 0.0))
    return out.to(out_dtype)
