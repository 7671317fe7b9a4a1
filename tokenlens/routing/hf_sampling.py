"""Tokens and signals out of a batch of logits, with each row's own parameters.

Noise is keyed on (seed, position, token id), so that a row draws the same token in any batch.
"""

from collections.abc import Sequence
from typing import Any

import torch
from tokenlens_kernels import philox
from torch import Tensor

from tokenlens.routing.facts import Fact, ranked
from tokenlens.routing.settings import Sampling
from tokenlens.routing.signals import TOP

GREEDY = Sampling(temperature=0.0, top_p=1.0, top_k=0)


def resolved(how: Sampling, config: Any) -> Sampling:
    """What a request leaves open, as a model's generation config has it; else plain sampling."""
    own = config.to_diff_dict() if config is not None else {}
    plain = {"temperature": 1.0, "top_p": 1.0, "top_k": 0}
    left = {name: own.get(name) for name in plain if getattr(how, name) is None}
    if not left:
        return how
    # A config may say null, which is "not set".
    found = {name: plain[name] if value is None else value for name, value in left.items()}
    return how.model_copy(update=found)


def sample(logits: Tensor, how: Sequence[Sampling], positions: Sequence[int]) -> Tensor:
    """Sampled ids, ``[num_rows]`` int64.

    Parameters
    ----------
    logits
        ``[num_rows, vocab]`` float32.
    how
        With nothing left open (:func:`resolved`).
    positions
        Index of each sampled token in its sequence.
    """
    greedy = logits.argmax(dim=-1)
    if all(one.temperature == 0 for one in how):
        return greedy
    device = logits.device
    scaled = warped(logits, how)
    seed = torch.tensor([one.seed for one in how], dtype=torch.int64, device=device)
    position = torch.tensor(list(positions), dtype=torch.int64, device=device)
    index = torch.arange(logits.shape[-1], device=device)
    noise = philox.gumbel(
        seed[:, None], philox.offset(position[:, None], index[None, :], philox.SAMPLE)
    )
    drawn = (scaled + noise).argmax(dim=-1)
    is_greedy = torch.tensor([one.temperature == 0 for one in how], device=device)
    return torch.where(is_greedy, greedy, drawn)


def warped(logits: Tensor, how: Sequence[Sampling]) -> Tensor:
    """Logits after temperature and filters; a greedy row has no filters, and temperature 1."""
    how = [GREEDY if one.temperature == 0 else one for one in how]
    # Below that, float32 would have no finite quotient; nothing but the largest is drawn there.
    least = [max(one.temperature or 1.0, 1e-5) for one in how]
    scaled = logits / torch.tensor(least, device=logits.device)[:, None]
    if any(one.top_k or (one.top_p or 1.0) < 1 for one in how):
        scaled = _filtered(scaled, how)
    return scaled


def facts(logits: Tensor, tokens: Sequence[int], count: int) -> list[Fact]:
    """What each row's distribution says of its token, entropy over the full vocabulary included.

    Parameters
    ----------
    logits
        ``[num_rows, vocab]`` float32, as they are or :func:`warped`.
    """
    log_p = logits.log_softmax(dim=-1)
    # An impossible token adds nothing; its product would be NaN.
    entropy = -(log_p.exp() * log_p.masked_fill(log_p == -torch.inf, 0.0)).sum(dim=-1)
    top = log_p.topk(min(count, log_p.shape[-1]), dim=-1)
    own = log_p.gather(1, torch.tensor(list(tokens), device=logits.device)[:, None])[:, 0]
    rows = zip(
        tokens, own.tolist(), entropy.tolist(), top.indices.tolist(), top.values.tolist()
    )  # fmt: skip
    return [
        Fact(token, value, ranked(dict(zip(ids, values)), count), max(0.0, nats))
        for token, value, nats, ids, values in rows
    ]


def _filtered(scaled: Tensor, how: Sequence[Sampling]) -> Tensor:
    """Logits with what top-k and top-p drop at minus infinity; the entry that crosses stays."""
    device, width = scaled.device, scaled.shape[-1]
    values, ids = scaled.sort(dim=-1, descending=True)
    rank = torch.arange(width, device=device)
    top_k = torch.tensor([one.top_k or width for one in how], device=device)
    top_p = torch.tensor([1.0 if one.top_p is None else one.top_p for one in how], device=device)
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
