"""Whether a model can be fed embeddings in place of token ids: measured, and never assumed.

Some models look their tokens up in a second table (per-layer embeddings, n-grams), route by them,
or scale only what they looked up themselves. With ``inputs_embeds`` alone these give other logits
or none, and no list of them would be complete.
"""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tokenlens.hf.embedding import HookedEmbedding

PROBED = 3
"""Tokens of a probe: enough for what looks at several at once (n-grams)."""

CLOSE = 1e-3
"""Of the largest logit: both ways do the same arithmetic where they are the same."""

# nn.Module hashes by identity.
_KNOWN: "weakref.WeakKeyDictionary[nn.Module, bool]" = weakref.WeakKeyDictionary()


@torch.no_grad()
def takes_embeddings(model: Any, embedding: HookedEmbedding, device: torch.device) -> bool:
    """Whether ``inputs_embeds`` do what mixtures behind the input embedding do.

    Parameters
    ----------
    model
        Run twice, on a few tokens without a cache, once in its life.
    embedding
        Its input embedding.
    device
        Where its token ids are.
    """
    known = _KNOWN.get(model)
    if known is None:
        known = _KNOWN[model] = _measure(model, embedding, device)
    return known


def _measure(model: Any, embedding: HookedEmbedding, device: torch.device) -> bool:
    size = int(model.config.get_text_config().vocab_size)
    # Not the first and the last, which are padding and images in many models
    ids = torch.arange(1, PROBED + 1, device=device)[None] * size // (PROBED + 2)
    # No token's own: some models look for the token that an embedding is of.
    mixture = (embedding.look_up(ids) + embedding.look_up(ids.flip(1) - 1)) / 2

    def feed(module: nn.Module, args: Any, output: Any) -> Any:
        return mixture if getattr(output, "shape", None) == mixture.shape else None

    with resting(model):
        hook = embedding.module.register_forward_hook(feed)
        try:
            by_ids = model(input_ids=ids, use_cache=False).logits.float()
        finally:
            hook.remove()
        try:
            by_embeddings = model(inputs_embeds=mixture, use_cache=False).logits.float()
        except Exception:  # each model has its own words for it
            return False
    apart = (by_ids - by_embeddings).abs().max()
    # Written so that a NaN is no agreement; reads the device, once for a model.
    return bool(apart <= CLOSE * by_ids.abs().max())


@contextmanager
def resting(model: nn.Module) -> Iterator[None]:
    """In evaluation mode, and without what models that see remember of the call before."""
    before = [
        (module, module.rope_deltas)
        for module in model.modules()
        if isinstance(module.__dict__.get("rope_deltas"), Tensor)
    ]
    training = [module for module in model.modules() if module.training]
    for module, _ in before:
        module.rope_deltas = None  # type: ignore[assignment]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
        for module, deltas in before:
            module.rope_deltas = deltas
