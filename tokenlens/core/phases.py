"""Where a request is, advanced with every committed token.

``PROMPT`` until the model opens its thinking, ``THINKING`` until it ends it, ``ANSWER`` until it
opens it again. Knows no texts: markers are single tokens here, or an automaton's transitions.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tokenlens.core.columns import EOS_IDS, Field, Value
from tokenlens.core.marker_columns import CLASSES, EFFECT, STATE, transitions
from tokenlens.core.rows import Rows
from tokenlens.spec.needs import Need

MAX_MARKS = 8
"""The most markers of one token each that a request can have."""
# Markers of one token each, behind them the end-of-text tokens: one look tells them all.
# An engine may show a place without a token as -1, which must not look like one of them.
NO_MARK = -2
_MARKS = MAX_MARKS + EOS_IDS.size
MARKS = Field("phase.marks", "int", NO_MARK, size=_MARKS, fixed=True)
# What each of them does: the phase that it leads to, and `ENDS` if it ends the text
EFFECTS = Field("phase.effects", "int", size=_MARKS, fixed=True)
ENDS = 4
FIELDS = (MARKS, EFFECTS, STATE, CLASSES)


def pack_marks(marks: Mapping[int, int], eos_ids: Sequence[int]) -> dict[Field, Value]:
    """Single-token markers and end-of-text tokens, and their effects, as columns of the table."""
    effects = dict(marks)
    for token in eos_ids:
        effects[token] = effects.get(token, 0) | ENDS
    return {MARKS: list(effects), EFFECTS: list(effects.values())}


def advance(rows: Rows, phase: Tensor, sampled: Tensor) -> tuple[Tensor, Tensor]:
    """The phase after the committed tokens, and whether the text goes on.

    The rows' markers are moved on if some live request has one of several tokens.

    Parameters
    ----------
    phase, sampled
        ``[num_rows]`` int64.

    Returns
    -------
    phase, going
        ``[num_rows]`` int64 and bool.
    """
    # One of them at most is the token: each stands there once.
    effect = ((rows[MARKS] == sampled.unsqueeze(1)) * rows[EFFECTS]).sum(dim=1)
    leads = effect & (ENDS - 1)
    if Need.LONG_MARKERS in rows.needs:
        entry = transitions(rows, sampled.unsqueeze(1))[:, 0]
        rows[STATE] = entry
        leads = leads + (entry & EFFECT)
    return torch.where(leads > 0, leads, phase), effect < ENDS
