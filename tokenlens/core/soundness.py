"""What makes a step usable: finite logits after the edits, concept tokens that are mixtures.

Bounds on every number of a spec keep the arithmetic finite; this is the line behind them. A row
that fails here is an invalid step: the engine samples from the logits that it brought, and the
token is fed as itself. A number that is not finite must not be fed: it would stay in the KV cache,
where another request's attention multiplies it by 0 and gets a NaN. Knows no methods.
"""

import torch
from torch import Tensor

from tokenlens.core.columns import BASE_WEIGHT, LOG_PROBABILITY, Field
from tokenlens.core.proposal import Proposal
from tokenlens.core.rows import Rows
from tokenlens.spec.needs import Need

EDITS = Field("count.edits", "bool", False, fixed=True)
"""The request has a method that edits logits without asking for signals: its unusable rows count
as invalid steps, though no method looked at a signal."""

MOST_WEIGHT = 64.0
"""Of one entry of a concept token: weights sum to 1, and there are at most 64."""


def usable(logits: Tensor, vocab_size: int) -> tuple[Tensor, Tensor]:
    """Which rows have something finite and neither NaN nor +inf, and the largest of each row.

    ``[num_rows]`` bool and as the logits, padding aside; the largest of an unusable row is 0.
    """
    highest = logits[:, :vocab_size].amax(dim=1)
    found = highest.abs() < torch.inf
    return found, torch.where(found, highest, 0)


def keep_sound(rows: Rows, proposal: Proposal, active: Tensor, base: Tensor | None) -> Tensor:
    """Make the rows discrete whose concept token cannot be fed; which rows are fine.

    Parameters
    ----------
    proposal
        Changed in place: what is not fine is neither latent nor forced, and records nothing.
    active
        ``[num_rows]`` bool: rows that have a concept token; others are fine.
    base
        ``[num_rows, hidden]``: the engine's vectors, ``None`` if none are fed.

    Returns
    -------
    Tensor
        ``[num_rows]`` bool.
    """
    # All weights of a concept token sum to 1, also those with a negative first entry: a sum that is
    # NaN, infinite or nearly nothing is that of no mixture.
    total = proposal.weights.sum(dim=1)
    beside = []
    if base is not None:
        beside += [base.sum(dim=1), rows[BASE_WEIGHT]]
    if proposal.scores is not None and Need.SCORES in rows.needs:
        beside += [proposal.scores.sum(dim=1), rows[LOG_PROBABILITY]]
    for values in beside:
        # Adds 0, or NaN.
        total = total + (values - values)
    sound = total == total.clamp(0.5, 1.5)
    fine = sound >= active
    proposal.latent = proposal.latent & fine
    proposal.forced = proposal.forced & fine
    # Noise on nothing may be no number, and is recorded where nothing is fed, too.
    proposal.weights = torch.where(sound[:, None], proposal.weights, 0.0)
    if proposal.scores is not None:
        proposal.scores = torch.where(sound[:, None], proposal.scores, 0.0)
    return fine


def keep_known(rows: Rows, proposal: Proposal, theirs: Tensor) -> Tensor:
    """Make the rows discrete whose tokens the model does not have; which rows are fine.

    For rows of methods that this package did not write: an id beyond the table would end the
    engine, and a weight beyond every mixture what is computed with it.

    Parameters
    ----------
    proposal
        Changed in place.
    theirs
        ``[num_rows]`` bool: rows of such methods; others are fine.

    Returns
    -------
    Tensor
        ``[num_rows]`` bool.
    """
    known = _is_token(rows, proposal.recorded)
    mixed = _is_token(rows, proposal.ids).all(dim=1)
    # A NaN is not at most anything.
    mixed = mixed & (proposal.weights.abs() <= MOST_WEIGHT).all(dim=1)
    fine = (known | ~proposal.forced) & (mixed | ~proposal.latent) | ~theirs
    proposal.latent, proposal.forced = proposal.latent & fine, proposal.forced & fine
    bad = theirs & ~known
    proposal.recorded = torch.where(bad, 0, proposal.recorded)
    bad = (theirs & ~mixed)[:, None]
    proposal.ids = torch.where(bad, 0, proposal.ids)
    proposal.weights = torch.where(bad, 0.0, proposal.weights)
    return fine


def _is_token(rows: Rows, ids: Tensor) -> Tensor:
    found = (ids >= 0) & (ids < rows.vocab_size)
    if rows.holes is not None:
        place = torch.searchsorted(rows.holes, ids).clamp(max=len(rows.holes) - 1)
        found = found & (rows.holes[place] != ids)
    return found
