"""Batched decoding of the tiny reasoner, to measure it: greedy, sampled, soft, Gumbel-softmax.

Scope: a small independent loop on `model.TinyQwen3`; all prompts of a batch have equal length. It
is not how tokenlens decodes, and shares no code with it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from model import TinyQwen3
from torch import Tensor


@dataclass(frozen=True)
class Decoding:
    """How to choose tokens.

    ``mode`` is ``greedy``, ``sample``, ``soft`` (every thinking token is fed as the mixture of its
    filtered candidates; the visible token is the top entry) or ``gumbel`` (the same with
    Gumbel-softmax noise of temperature ``tau`` on the weights). After ``</think>`` the soft modes
    take the arg-max.
    """

    mode: str = "greedy"
    temperature: float = 0.6
    top_k: int = 30
    top_p: float = 0.95
    entries: int = 15
    tau: float = 0.5
    seed: int = 0


@dataclass
class Transcript:
    """What one prompt led to; ``entropies`` (nats, of the raw logits) has one value a token."""

    ids: list[int] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)


def candidates(logits: Tensor, how: Decoding) -> tuple[Tensor, Tensor]:
    """Return ids and renormalised weights ``[..., entries]`` after temperature, top-k and top-p.

    The weights are in descending order; entries that the filters drop weigh 0.
    """
    weights, ids = (logits / how.temperature).softmax(-1).topk(how.top_k, dim=-1)
    weights = weights / weights.sum(-1, keepdim=True)
    # The entry that crosses top_p stays.
    weights = weights.masked_fill(weights.cumsum(-1) - weights >= how.top_p, 0.0)
    weights, ids = weights[..., : how.entries], ids[..., : how.entries]
    return ids, weights / weights.sum(-1, keepdim=True)


def gumbel_weights(weights: Tensor, noise: Tensor, tau: float | Tensor) -> Tensor:
    """Return ``softmax((ln weights + noise) / tau)``."""
    return ((weights.log() + noise) / tau).softmax(-1)


@torch.no_grad()
def decode(
    model: TinyQwen3,
    prompts: Tensor,
    how: Decoding,
    *,
    end: int,
    think: int,
    end_think: int,
    max_new_tokens: int = 320,
) -> list[Transcript]:
    """Decode a batch of prompts of equal length.

    Parameters
    ----------
    model : TinyQwen3
    prompts : Tensor
        ``[batch, length]`` ids.
    how : Decoding
    end, think, end_think : int
        Ids of the end mark and of the think markers.
    max_new_tokens : int

    Returns
    -------
    list of Transcript
        In the order of the prompts; the end mark is the last id where it was reached.
    """
    generator = torch.Generator().manual_seed(how.seed)
    batch, length = prompts.shape
    transcripts = [Transcript() for _ in range(batch)]
    cache = model.new_cache(batch, length + max_new_tokens)
    rows = torch.arange(batch)
    thinking = torch.zeros(batch, dtype=torch.bool)
    hidden = model(prompts, cache, 0)[:, -1]
    for step in range(max_new_tokens):
        logits = model.lm_head(hidden)
        entropy = torch.distributions.Categorical(logits=logits).entropy()
        tokens = logits.argmax(-1)
        feed = model.embed(tokens)
        if how.mode != "greedy":
            ids, weights = candidates(logits, how)
            if how.mode == "sample":
                pick = torch.multinomial(weights, 1, generator=generator)
                tokens = ids.gather(1, pick).squeeze(1)
                feed = model.embed(tokens)
            else:
                if how.mode == "gumbel":
                    uniform = torch.rand(weights.shape, generator=generator).clamp_min(1e-20)
                    weights = gumbel_weights(weights, -(-uniform.log()).log(), how.tau)
                top = ids.gather(1, weights.argmax(-1, keepdim=True)).squeeze(1)
                tokens = torch.where(thinking, top, tokens)
                mixture = (weights.unsqueeze(-1) * model.embed(ids)).sum(1)
                latent = thinking & (tokens != end_think)
                feed = torch.where(latent.unsqueeze(-1), mixture, model.embed(tokens))
        thinking = (thinking | (tokens == think)) & (tokens != end_think)
        for row, token, value in zip(rows.tolist(), tokens.tolist(), entropy.tolist(), strict=True):
            transcripts[row].ids.append(token)
            transcripts[row].entropies.append(value)
        alive = tokens != end
        if not alive.any():
            break
        # Finished rows are dropped once they are a quarter: copying the cache is not free.
        if alive.float().mean() < 0.75:
            rows, feed, thinking = rows[alive], feed[alive], thinking[alive]
            cache = cache[:, :, alive]
        elif not alive.all():
            # Rows that have ended go on until they are dropped; what they write is cut off below.
            pass
        hidden = model(feed.unsqueeze(1), cache, length + step)[:, -1]
    for transcript in transcripts:
        if end in transcript.ids:
            cut = transcript.ids.index(end) + 1
            del transcript.ids[cut:], transcript.entropies[cut:]
    return transcripts
