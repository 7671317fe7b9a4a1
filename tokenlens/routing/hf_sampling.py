"""Tokens and signals out of a batch of logits, with each row's own parameters.

Noise is keyed on (seed, position, token id), so that a row draws the same token in any batch.
"""

from collections.abc import Sequence

import torch
from tokenlens_kernels import philox
from torch import Tensor

from tokenlens.routing.settings import Sampling
from tokenlens.routing.signals import TOP


def sample(logits: Tensor, how: Sequence[Sampling], positions: Sequence[int]) -> Tensor:
    """Sampled ids, ``[num_rows]`` int64.

    Parameters
    ----------
    logits
        ``[num_rows, vocab]`` float32.
    positions
        Index of each sampled token in its sequence.
    """
    greedy = logits.argmax(dim=-1)
    if all(one.temperature == 0 for one in how):
        return greedy
    device = logits.device
    temperature = torch.tensor([one.temperature or 1.0 for one in how], device=device)
    scaled = logits / temperature[:, None]
    if any(one.top_k or one.top_p < 1 for one in how):
        scaled = _filtered(scaled, how)
    seed = torch.tensor([one.seed for one in how], dtype=torch.int64, device=device)
    position = torch.tensor(list(positions), dtype=torch.int64, device=device)
    index = torch.arange(logits.shape[-1], device=device)
    noise = philox.gumbel(
        seed[:, None], philox.offset(position[:, None], index[None, :], philox.SAMPLE)
    )
    drawn = (scaled + noise).argmax(dim=-1)
    is_greedy = torch.tensor([one.temperature == 0 for one in how], device=device)
    return torch.where(is_greedy, greedy, drawn)


def _filtered(scaled: Tensor, how: Sequence[Sampling]) -> Tensor:
    """Logits with what top-k and top-p drop at minus infinity; the entry that crosses stays."""
    device, width = scaled.device, scaled.shape[-1]
    values, ids = scaled.sort(dim=-1, descending=True)
    rank = torch.arange(width, device=device)
    top_k = torch.tensor([one.top_k or width for one in how], device=device)
    top_p = torch.tensor([one.top_p for one in how], device=device)
    values = values.masked_fill(rank[None, :] >= top_k[:, None], -torch.inf)
    weights = values.softmax(dim=-1)
    dropped = (weights.cumsum(dim=-1) - weights >= top_p[:, None]) & (top_p < 1)[:, None]
    values = values.masked_fill(dropped, -torch.inf)
    return torch.empty_like(scaled).scatter_(1, ids, values)


def signals(logits: Tensor) -> tuple[list[float], list[list[int]], list[list[float]]]:
    """Entropy (nats, full vocabulary), top ids and their log-probabilities of each row."""
    log_p = logits.log_softmax(dim=-1)
    # An impossible token adds nothing; its product would be NaN.
    entropy = -(log_p.exp() * log_p.masked_fill(log_p == -torch.inf, 0.0)).sum(dim=-1)
    top = log_p.topk(min(TOP, log_p.shape[-1]), dim=-1)
    return entropy.tolist(), top.indices.tolist(), top.values.tolist()
