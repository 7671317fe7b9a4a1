"""Edits of logits that several methods make: deltas on token sets, and where a request counts.

A token set is a wide column of ids, ``-1`` where it is not full. Every edit leaves the rows and
columns that it is not about bit for bit as they were.
"""

import torch
from tokenlens_kernels import logit_edit, signals_topk
from torch import Tensor

from tokenlens.core import phases
from tokenlens.core.columns import GENERATED, INVERSE_TEMPERATURE, PROMPT_THINKING
from tokenlens.core.rows import Rows

BAN = -1e10
"""Below every logit; not -inf, so that a row in which nothing else is left stays a distribution."""
MAX_WORD_IDS = 128
"""The most token ids that a method's words may have."""
MAX_SET_IDS = 1024
"""The most token ids of a set that is found by looking through the vocabulary."""


def add(logits: Tensor, ids: Tensor, deltas: Tensor, rows: Rows) -> Tensor:
    """The logits, with deltas added to a few ids of each row, in one scatter.

    Parameters
    ----------
    logits
        ``[num_rows, width]``.
    ids
        ``[num_rows, size]`` int64; ``-1`` is skipped, an id that comes twice gets both deltas.
    deltas
        ``[num_rows]`` or ``[num_rows, size]`` float; 0 leaves the logit's bits alone.
    """
    if deltas.dim() == 1:
        deltas = deltas[:, None]
    num_rows, size = ids.shape
    logits = rows.edits.writable(logits, ids)
    logit_edit(
        logits,
        slots=torch.arange(num_rows, device=ids.device),
        edit_ids=ids,
        edit_deltas=deltas.to(torch.float32).expand(num_rows, size),
        edit_counts=torch.full((num_rows,), size, device=ids.device),
        forced_ids=torch.full((num_rows,), -1, device=ids.device),
        vocab_size=logits.shape[1],
    )
    return logits


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
    tokens = torch.where(output, rows[GENERATED], phases.in_block(rows))
    return tokens + torch.where(prompt, rows[PROMPT_THINKING], 0)


def facts(
    logits: Tensor, due: Tensor, inverse_temperature: Tensor, rows: Rows
) -> tuple[Tensor, Tensor]:
    """Log-sum-exp and entropy of each row's tempered logits, in one pass.

    Parameters
    ----------
    due
        ``[num_rows]`` bool: rows that are looked at.
    inverse_temperature
        ``[num_rows]`` float32.

    Returns
    -------
    logsumexp, entropy
        ``[num_rows]`` float32 over the vocabulary without padding, nats. The first is NaN in a row
        of ``due`` that cannot be used: with NaN, +inf, or nothing finite.
    """
    zeros = torch.zeros_like(rows[GENERATED])
    ones, off = zeros + 1, torch.zeros_like(inverse_temperature)
    found = signals_topk(
        logits,
        active=due,
        inverse_temperature=inverse_temperature,
        top_k=zeros,
        top_p=off + 1,
        min_p=off,
        max_entries=ones,
        noise_temperature=off,
        seed=zeros,
        position=zeros,
        vocab_size=rows.vocab_size,
        width=1,
    )
    return found.logsumexp, found.entropy


def entropy(logits: Tensor, due: Tensor, rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
    """Entropy of each row's softmax in nats, its log-sum-exp, and the rows of ``due`` to use."""
    logsumexp, nats = facts(logits, due, torch.ones_like(rows[INVERSE_TEMPERATURE]), rows)
    return nats, logsumexp, due & (logsumexp == logsumexp)


def retemper(
    logits: Tensor, due: Tensor, temperature: Tensor, engine: Tensor, logsumexp: Tensor
) -> Tensor:
    """Rows divided by a temperature of ours, and multiplied by what the engine will divide by.

    A row that would come near the end of its format is moved down by its log-sum-exp first, which
    changes no probability.

    Parameters
    ----------
    due
        ``[num_rows]`` bool.
    temperature, engine, logsumexp
        ``[num_rows]`` float; the last of the logits.
    """
    factor = (engine.double() / temperature).float()
    most = torch.finfo(logits.dtype).max / 16
    shift = torch.where((logsumexp * factor).abs() > most, logsumexp, 0.0)
    scaled = (logits.float() - shift[:, None]) * factor[:, None]
    return torch.where(due[:, None], scaled.to(logits.dtype), logits)


def truncate(logits: Tensor, due: Tensor, keep: Tensor) -> Tensor:
    """-inf where a row is due and a token is not kept, padding included.

    Parameters
    ----------
    keep
        ``[num_rows, vocab]`` bool.
    """
    padding = logits.shape[1] - keep.shape[1]
    drop = ~keep
    if padding:
        drop = torch.cat((drop, drop.new_ones((drop.shape[0], padding))), dim=1)
    return logits.masked_fill(due[:, None] & drop, -torch.inf)


def usable(logits: Tensor) -> Tensor:
    """Rows with something finite and neither NaN nor +inf: ``[num_rows]`` bool."""
    return logits.amax(dim=1).isfinite()
