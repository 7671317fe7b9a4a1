"""Where a request is, advanced with every committed token.

``PROMPT`` until the model opens its thinking, ``THINKING`` until it ends it, ``ANSWER`` until it
opens it again, if it may. Knows no texts: markers are single tokens here, or an automaton's
transitions.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tokenlens.core.columns import (
    EARLIER_THINKING,
    EOS_IDS,
    PHASE,
    PROMPT_THINKING,
    THINKING_TOKENS,
    Field,
    Phase,
    Value,
)
from tokenlens.core.marker_columns import CLASSES, EFFECT, STATE, transitions
from tokenlens.core.rows import Rows
from tokenlens.spec.needs import Need

MAX_MARKS = 16
"""The most markers of one token each that a request can have."""
# Markers of one token each, behind them the end-of-text tokens: one look tells them all.
# An engine may show a place without a token as -1, which must not look like one of them.
NO_MARK = -2
_MARKS = MAX_MARKS + EOS_IDS.size
MARKS = Field("phase.marks", "int", NO_MARK, size=_MARKS, fixed=True)
# What each of them does: the phase that it leads to, and `ENDS` if it ends the text
EFFECTS = Field("phase.effects", "int", size=_MARKS, fixed=True)
ENDS = 4
# Thinking that nobody writes an end of: over after so many tokens
END_AFTER = Field("phase.end_after", "int", 1 << 62, fixed=True)
# Budgets and schedules begin anew with every block of thinking
BY_BLOCK = Field("phase.by_block", "bool", False, fixed=True)
# Thinking that has ended stays ended
ONCE = Field("phase.once", "bool", False, fixed=True)
FIELDS = (MARKS, EFFECTS, STATE, CLASSES, END_AFTER, BY_BLOCK, EARLIER_THINKING, ONCE)


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
    phase, alive
        ``[num_rows]`` int64 and bool.
    """
    # One of them at most is the token: each stands there once.
    effect = ((rows[MARKS] == sampled.unsqueeze(1)) * rows[EFFECTS]).sum(dim=1)
    leads = effect & (ENDS - 1)
    if Need.LONG_MARKERS in rows.needs:
        entry = transitions(rows, sampled.unsqueeze(1))[:, 0]
        rows[STATE] = entry
        leads = leads + (entry & EFFECT)
    if Need.ONE_BLOCK in rows.needs:
        leads = torch.where(rows[ONCE] & (phase == int(Phase.ANSWER)), 0, leads)
    return torch.where(leads > 0, leads, phase), effect < ENDS


def closed(rows: Rows) -> Tensor:
    """Rows whose thinking is over for good, ``[num_rows]`` bool: nothing is forced in them."""
    return rows[ONCE] & (rows[PHASE] == int(Phase.ANSWER))


def end_silently(rows: Rows) -> None:
    """End thinking that has no markers, before the token after its last one is decided."""
    if Need.SILENT_END in rows.needs:
        over = rows.thinking & (rows[THINKING_TOKENS] >= rows[END_AFTER])
        rows.choose(PHASE, over, int(Phase.ANSWER))


def begin_block(rows: Rows, before: Tensor) -> None:
    """Where thinking has just opened again: what came before is an earlier block's."""
    opened = rows[BY_BLOCK] & rows.thinking & (before != int(Phase.THINKING))
    rows.choose(EARLIER_THINKING, opened, rows[THINKING_TOKENS])
    rows.choose(PROMPT_THINKING, opened, 0)


def in_block(rows: Rows) -> Tensor:
    """Thinking tokens that a budget counts, ``[num_rows]`` int64: all, or those of the block."""
    tokens = rows[THINKING_TOKENS]
    return tokens - rows[EARLIER_THINKING] if Need.BLOCKS in rows.needs else tokens
