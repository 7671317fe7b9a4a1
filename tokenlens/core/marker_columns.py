"""How far a marker of several tokens has come, and what each token would do: for the step.

A transition is one number: the state that follows (an address in the table of transitions), how
many tokens of the forced end are written there, whether an end of thinking has begun or been
completed, and the phase that the token leads to, 0 for none.
"""

from torch import Tensor

from tokenlens.core.columns import Field
from tokenlens.core.rows import Rows
from tokenlens.spec.needs import Need

EFFECT = 3
"""The bits of the phase."""
HOT = 4
"""The bit of tokens that end thinking or that can only begin its end."""
AT_SHIFT = 3
AT = 7 << AT_SHIFT
"""The bits of the tokens of the forced end that are written."""
STATE_SHIFT = 6

STATE = Field("markers.state", "int")  # the last transition
CLASSES = Field("markers.classes", "int", 1, fixed=True)  # where the request's classes begin


def transitions(rows: Rows, ids: Tensor) -> Tensor:
    """What tokens would do now, ``[num_rows, size]`` int32.

    Parameters
    ----------
    ids
        ``[num_rows, size]`` int64; what is no token changes nothing for good.
    """
    classes, moves = rows.marker_tables
    token = ids.clamp(-1, rows.vocab_size) + rows[CLASSES][:, None]
    group = classes.index_select(0, token.view(-1)).view(token.shape)
    return moves[(rows[STATE] >> STATE_SHIFT)[:, None] + group]


def written_end(rows: Rows) -> Tensor:
    """How many tokens of the forced end the newest tokens are, ``[num_rows]`` int64."""
    if Need.LONG_MARKERS not in rows.needs:
        return rows.constant(0)
    return (rows[STATE] & AT) >> AT_SHIFT
