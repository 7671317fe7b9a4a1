"""Forced sequences: tokens that a method decides ahead of time, one a step.

Knows no method: of two sequences the one that began first is finished.
"""

from torch import Tensor

from tokenlens.core.columns import FORCE_AT, FORCE_IDS, FORCE_LENGTH
from tokenlens.core.rows import Rows
from tokenlens.spec.needs import Need

FORCED_LOGIT = 1e6
"""Far above any logit, far below float32's precision limit for the logits beside it."""


def start_forcing(
    rows: Rows, where: Tensor, ids: Tensor, length: Tensor, at: Tensor | int = 0
) -> None:
    """Begin a forced sequence, or go on with its token ``at``, in rows that are not in one.

    The method says so in its ``needs``: what no request needs, a step leaves out.
    """
    if Need.FORCING not in rows.needs:
        raise TypeError("start_forcing: got a method without Need.FORCING in its needs(); add it")
    where = where & (rows[FORCE_LENGTH] == 0) & (length > 0)
    rows.choose(FORCE_IDS, where, ids)
    rows.choose(FORCE_LENGTH, where, length)
    rows.choose(FORCE_AT, where, at)
