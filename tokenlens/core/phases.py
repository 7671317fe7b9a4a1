"""Where a request is: read off the prompt once, then advanced with every committed token.

``PROMPT`` until the model opens its thinking, ``THINKING`` until it ends it, ``ANSWER`` for good.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from tokenlens.methods.base import EOS_IDS, Field, Phase, Rows, Value
from tokenlens.spec import Tokenizer
from tokenlens.spec.decoding import MAX_MARKER_TOKENS
from tokenlens.spec.markers import MAX_SPELLINGS

RECENT = Field("phase.recent", "int", -1, size=MAX_MARKER_TOKENS)  # newest last
_MARKERS = MAX_SPELLINGS * MAX_MARKER_TOKENS
START_MARKERS = Field("phase.start_markers", "int", -1, size=_MARKERS, fixed=True)
END_MARKERS = Field("phase.end_markers", "int", -1, size=_MARKERS, fixed=True)
# Markers of one token each, behind them the end-of-text tokens: one look tells them all.
# An engine may show a place without a token as -1, which must not look like one of them.
NO_MARK = -2
_MARKS = 2 * MAX_SPELLINGS + EOS_IDS.size
MARKS = Field("phase.marks", "int", NO_MARK, size=_MARKS, fixed=True)
# What each of them does: the phase that it leads to, and `ENDS` if it ends the text
EFFECTS = Field("phase.effects", "int", size=_MARKS, fixed=True)
ENDS = 4
FIELDS = (RECENT, START_MARKERS, END_MARKERS, MARKS, EFFECTS)

LONG_MARKERS = "long_markers"
"""The trait of requests with a marker of several tokens."""


def pack_markers(spellings: Sequence[Sequence[int]]) -> list[int]:
    """Marker spellings as one row of the table: right-aligned, ``-1`` in front."""
    packed: list[int] = []
    for spelling in [*spellings, *[[]] * (MAX_SPELLINGS - len(spellings))]:
        packed += [-1] * (MAX_MARKER_TOKENS - len(spelling)) + list(spelling)
    return packed


def pack_marks(
    starts: Sequence[Sequence[int]], ends: Sequence[Sequence[int]], eos_ids: Sequence[int]
) -> dict[Field, Value]:
    """Single-token markers and end-of-text tokens, and their effects, as columns of the table."""
    effects: dict[int, int] = {}
    for markers, phase in ((starts, Phase.THINKING), (ends, Phase.ANSWER)):
        for marker in markers:
            if len(marker) == 1:
                effects[marker[0]] = max(effects.get(marker[0], 0), int(phase))
    for token in eos_ids:
        effects[token] = effects.get(token, 0) | ENDS
    return {MARKS: list(effects), EFFECTS: list(effects.values())}


def pack_recent(prompt_ids: Sequence[int]) -> list[int]:
    """The last tokens of the prompt, right-aligned, ``-1`` in front."""
    tail = list(prompt_ids[-MAX_MARKER_TOKENS:])
    return [-1] * (MAX_MARKER_TOKENS - len(tail)) + tail


def phase_after_prompt(
    prompt_ids: Sequence[int],
    start_markers: Sequence[Sequence[int]],
    end_markers: Sequence[Sequence[int]],
    tokenizer: Tokenizer | None,
) -> Phase:
    """The phase in which the first generated token stands.

    The last marker of the prompt decides. An open start means ``THINKING``. An end means
    ``ANSWER`` if nothing but blanks follow it (a chat template that switches thinking off); an end
    with text behind it belongs to an earlier turn, and the model has yet to begin: ``PROMPT``.
    """
    started, _ = _last(prompt_ids, start_markers)
    ended, end_stop = _last(prompt_ids, end_markers)
    if started < 0 and ended < 0:
        return Phase.PROMPT
    if started > ended:
        return Phase.THINKING
    tail = prompt_ids[end_stop:]
    if not tail or tokenizer is None or not tokenizer.decode(tail).strip():
        return Phase.ANSWER
    return Phase.PROMPT


def thinking_in_prompt(
    prompt_ids: Sequence[int], phase: Phase, start_markers: Sequence[Sequence[int]]
) -> int:
    """How many tokens of an open thinking the prompt already holds."""
    _, stop = _last(prompt_ids, start_markers)
    return len(prompt_ids) - stop if phase is Phase.THINKING and stop >= 0 else 0


def _last(ids: Sequence[int], markers: Sequence[Sequence[int]]) -> tuple[int, int]:
    """Start and end of the last occurrence of any marker, or -1 and -1."""
    best = (-1, -1)
    for marker in markers:
        length = len(marker)
        for start in range(len(ids) - length, best[0], -1):
            if list(ids[start : start + length]) == list(marker):
                best = (start, start + length)
                break
    return best


def _seen(recent: Tensor, markers: Tensor) -> Tensor:
    """Whether the newest tokens are one of the markers: ``[num_rows]`` bool."""
    # [num_rows, MAX_SPELLINGS, MAX_MARKER_TOKENS]
    wanted = markers.view(-1, MAX_SPELLINGS, MAX_MARKER_TOKENS)
    fits = (wanted < 0) | (wanted == recent[:, None, :])
    return (fits.all(dim=2) & (wanted[:, :, -1] >= 0)).any(dim=1)


def advance(rows: Rows, phase: Tensor, sampled: Tensor) -> tuple[Tensor, Tensor]:
    """The phase after the committed tokens, and whether the text goes on.

    The rows' recent tokens are moved on if some live request has to look back at them.

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
    # Thinking that is open or over does not open: the larger of the two stays.
    phase = torch.maximum(phase, effect & (ENDS - 1))
    if LONG_MARKERS in rows.traits:
        recent = torch.cat([rows[RECENT][:, 1:], sampled[:, None]], dim=1)
        rows[RECENT] = recent
        started = _seen(recent, rows[START_MARKERS]) * int(Phase.THINKING)
        ended = _seen(recent, rows[END_MARKERS]) * int(Phase.ANSWER)
        phase = torch.maximum(phase, torch.maximum(started, ended))
    return phase, effect < ENDS
