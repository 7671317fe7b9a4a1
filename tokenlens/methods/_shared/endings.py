"""Shared by the methods that end or prolong thinking: how much of a text has just been written,
and whether a token that a method replaces would have been sampled.

A sampled token cannot be taken back on every engine. It is replaced before it is sampled instead:
a draw of ours, with the probability that it has, decides whether it comes up. If so, something else
is forced; if not, the token is banned for this step, and what is left is sampled with the right
probabilities. Together this is the distribution of sampling first and replacing then, if the
temperature is the engine's and no filter follows.
"""

import torch
from tokenlens_kernels import philox
from torch import Tensor

from tokenlens.core.columns import POSITION, SEED
from tokenlens.core.rows import Rows
from tokenlens.methods._shared.logits import facts

COLDEST = 1e-6
"""Temperature 0 is computed at this one: the most probable token comes up."""


def written(at: Tensor, text: Tensor, length: Tensor, sampled: Tensor) -> Tensor:
    """How many tokens of a text the newest tokens are, after one more token.

    Parameters
    ----------
    at, length, sampled
        ``[num_rows]`` int64. A text that is written in full counts as none of it.
    text
        ``[num_rows, size]`` int64.
    """
    goes_on = sampled == text.gather(1, at[:, None])[:, 0]
    begins = (sampled == text[:, 0]).long()
    at = torch.where(goes_on, at + 1, begins)
    return torch.where(at >= length, 0, at)


def comes_up(logits: Tensor, ids: Tensor, due: Tensor, temperature: Tensor, rows: Rows) -> Tensor:
    """Whether one of a few tokens would be sampled now: ``[num_rows]`` bool.

    Parameters
    ----------
    ids
        ``[num_rows, size]`` int64, ``-1`` for none.
    due
        ``[num_rows]`` bool: rows that are looked at.
    temperature
        ``[num_rows]`` float.
    """
    inverse = 1 / temperature.clamp_min(COLDEST)
    logsumexp, _ = facts(logits, due, inverse, rows)
    tempered = logits.gather(1, ids.clamp(min=0)).float() * inverse[:, None]
    p = torch.where(ids >= 0, (tempered - logsumexp[:, None]).exp(), 0.0).sum(dim=1)
    draw = philox.uniform(rows[SEED], philox.offset(rows[POSITION], 0, philox.REPLACE))
    # An unusable row's log-sum-exp is NaN, and no comparison with it holds.
    return due & (draw < p)
