"""Forced sequences: tokens that a method decides ahead of time, one a step.

Knows no method: of two sequences the one that began first is finished.
"""

import torch
from torch import Tensor

from tokenlens.core import phases
from tokenlens.core.columns import FORCE_AT, FORCE_IDS, FORCE_LENGTH, PHASE, Phase
from tokenlens.core.proposal import Proposal
from tokenlens.core.rows import Rows
from tokenlens.spec.needs import Need

FORCED_LOGIT = 1e6
"""Far above any logit, far below float32's precision limit for the logits beside it."""


def start_forcing(
    rows: Rows, where: Tensor, ids: Tensor, length: Tensor, at: Tensor | int = 0
) -> None:
    """Begin a forced sequence, or go on with its token ``at``, in rows that are not in one.

    The method says so in its ``needs``: what no request needs, a step leaves out. Of a request
    without markers the end has no tokens: its thinking is over then and there.
    """
    if Need.FORCING not in rows.needs:
        raise TypeError("start_forcing: got a method without Need.FORCING in its needs(); add it")
    where = where & (rows[FORCE_LENGTH] == 0)
    if Need.SILENT_END in rows.needs:
        rows.choose(PHASE, where & (length == 0) & rows.thinking, int(Phase.ANSWER))
    where = where & (length > 0)
    if Need.ONE_BLOCK in rows.needs:
        where = where & ~phases.closed(rows)
    rows.choose(FORCE_IDS, where, ids)
    rows.choose(FORCE_LENGTH, where, length)
    rows.choose(FORCE_AT, where, at)


def continue_forcing(rows: Rows, proposal: Proposal) -> None:
    """A forced sequence wins over everything else, and is discrete unless a method says no."""
    forcing = rows[FORCE_LENGTH] > 0
    at = rows[FORCE_AT].clamp(0, FORCE_IDS.size - 1)
    proposal.force(forcing, rows[FORCE_IDS].gather(1, at[:, None])[:, 0])
    if proposal.mixes is not None:
        forcing = forcing & ~proposal.mixes
    proposal.latent = proposal.latent & ~forcing


def leave_forbidden(rows: Rows, proposal: Proposal, logits: Tensor) -> None:
    """In an answer that is held to a grammar, what the engine has ruled out is not forced."""
    allowed = logits.gather(1, proposal.recorded[:, None])[:, 0] > -torch.inf
    proposal.forced = proposal.forced & (allowed | ~phases.closed(rows))


def advance_forcing(rows: Rows, as_recorded: Tensor) -> None:
    """Move forced sequences on by the token that was sampled.

    A token that the engine put in the place of a forced one breaks the sequence in two, and half
    an end marker ends nothing: it begins again. What stands behind the last end of thinking is left
    out: a grammar decides there.

    Parameters
    ----------
    as_recorded
        ``[num_rows]`` bool: the sampled token is the one that the step recorded.
    """
    forcing = rows[FORCE_LENGTH] > 0
    rows.choose(FORCE_AT, forcing, torch.where(as_recorded, rows[FORCE_AT] + 1, 0))
    over = rows[FORCE_AT] >= rows[FORCE_LENGTH]
    if Need.ONE_BLOCK in rows.needs:
        over = over | phases.closed(rows)
    rows.choose(FORCE_LENGTH, forcing & over, 0)


def force_logits(
    logits: Tensor, forced: Tensor, ids: Tensor, highest: Tensor | None, in_place: bool
) -> Tensor:
    """Lift one token of the forced rows far above the others; all other values stay bit-equal."""
    place = ids[:, None]
    # Half precision ends at 65504; a quarter leaves the engine room to divide by a temperature.
    most = torch.finfo(logits.dtype).max / 4
    least = min(FORCED_LOGIT, most)
    lifted: float | Tensor = least
    if highest is not None:
        # A temperature of ours may have made logits that are larger than that.
        lifted = (4 * highest).clamp(least, most)[:, None]
    values = torch.where(forced[:, None], lifted, logits.gather(1, place))
    return logits.scatter_(1, place, values) if in_place else logits.scatter(1, place, values)
