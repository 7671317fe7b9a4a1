"""Edits of logits that several methods make: deltas on token sets, and where a request counts.

A token set is a wide column of ids, ``-1`` where it is not full. Every edit returns a new tensor
and leaves the rows and columns that it is not about bit for bit as they were.
"""

import torch
from tokenlens_kernels import logit_edit
from torch import Tensor

from tokenlens.methods.base import GENERATED, PROMPT_THINKING, THINKING_TOKENS, Rows

MAX_WORD_IDS = 128
"""The most token ids that a method's words may have."""
MAX_SET_IDS = 1024
"""The most token ids of a set that is found by looking through the vocabulary."""


def add(logits: Tensor, ids: Tensor, deltas: Tensor) -> Tensor:
    """Logits with deltas added to a few ids of each row, in one scatter.

    Parameters
    ----------
    logits
        ``[num_rows, width]``.
    ids
        ``[num_rows, size]`` int64; ``-1`` is skipped, an id that comes twice gets both deltas.
    deltas
        ``[num_rows]`` or ``[num_rows, size]`` float; 0 leaves the logit's bits alone.
    """
    edited = logits.clone(memory_format=torch.contiguous_format)
    if deltas.dim() == 1:
        deltas = deltas[:, None]
    num_rows, size = ids.shape
    logit_edit(
        edited,
        slots=torch.arange(num_rows, device=ids.device),
        edit_ids=ids,
        edit_deltas=deltas.to(torch.float32).expand(num_rows, size),
        edit_counts=torch.full((num_rows,), size, device=ids.device),
        forced_ids=torch.full((num_rows,), -1, device=ids.device),
        vocab_size=logits.shape[1],
    )
    return edited


def contains(ids: Tensor, tokens: Tensor) -> Tensor:
    """Whether each row's token is in its set: ``[num_rows]`` bool."""
    return (ids == tokens[:, None]).any(dim=1)


def counted(rows: Rows, output: Tensor, prompt: Tensor) -> Tensor:
    """Tokens before the one that is decided now, ``[num_rows]`` int64.

    Parameters
    ----------
    output
        ``[num_rows]`` bool: over the whole output instead of the thinking.
    prompt
        ``[num_rows]`` bool: and the thinking tokens that the prompt holds.
    """
    tokens = torch.where(output, rows[GENERATED], rows[THINKING_TOKENS])
    return tokens + torch.where(prompt, rows[PROMPT_THINKING], 0)
