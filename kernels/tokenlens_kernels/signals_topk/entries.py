"""Filters, cut and noise on the few entries that each row has left, for a CPU.

The same arithmetic as in ``naive.py``, in numpy: on arrays this small a call costs more than its
work, and numpy's calls are the cheaper ones. Sums over entries are taken from first to last, so
that entries without mass change nothing, however many follow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from .. import philox
from .naive import LIVE_FLOOR

if TYPE_CHECKING:
    from collections.abc import Sequence

# [num_rows, width] or [num_rows, 1]
Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]
_Values = TypeVar("_Values", bound=NDArray[Any])

_WORD, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)
_MULTIPLIERS = np.array([philox.MULTIPLIER_A, philox.MULTIPLIER_B], dtype=np.uint64)
_WEYLS = np.array([philox.WEYL_A, philox.WEYL_B], dtype=np.uint64)
_ROUND = np.arange(philox.ROUNDS, dtype=np.uint64).reshape(-1, 1, 1, 1)


class Plan:
    """What some rows ask of their entries, made ready for one step.

    Which of the filters any row wants is settled here. What a row is divided by depends on its own
    parameters alone, so that its bits are the same in any batch.

    Parameters
    ----------
    parameters
        The op's ``inverse_temperature, top_k, top_p, min_p, max_entries, noise_temperature, seed``,
        ``[num_rows, 1]`` each.
    width
        Entries that the op returns.
    """

    def __init__(self, parameters: Sequence[NDArray[Any]], width: int) -> None:
        inverse_temperature, top_k, top_p, min_p, max_entries, noise_temperature, seed = parameters
        self.width = width
        self.inverse_temperature = inverse_temperature
        limited = top_k > 0
        self._limited = _rows(limited)
        self.needs_mass = self._limited is not True
        """Some row has no top-k: the mass of its whole vocabulary counts."""
        self.kept = width if self.needs_mass else min(width, int(top_k.max()))
        """Entries behind these are dead in all rows: nobody looks for them."""
        ends = np.where(limited, top_k, width) if self.needs_mass else top_k
        self._head = _head(ends, self.kept)
        # Float64 holds the float32 parameters exactly; the literal comparison would round the mass.
        nucleus, floor = top_p.astype(np.float64), min_p.astype(np.float64)
        filtering = nucleus < 1.0
        some = _rows(filtering)
        self._nucleus = None if some is False else np.where(filtering, nucleus, np.inf)
        self._unfinished = _rows(filtering | ~limited)
        self._floor, self._floored = floor, _rows(floor > 0)
        # A row that may keep all its entries keeps their bits.
        self._cutting = _rows(max_entries < ends)
        self._cut_head = _head(max_entries, self.kept)
        noisy = noise_temperature > 0
        self._noisy, self._seed = _rows(noisy), seed
        self._tau = np.where(noisy, noise_temperature, 1.0).astype(np.float64)

    def probabilities(self, values: Floats, highest: Floats, total: Floats | None) -> Floats:
        """Filtered probabilities ``[num_rows, kept]`` float64 of the largest logits, in order.

        ``total``, the mass of the whole vocabulary, is needed by rows without a top-k. All of
        ``highest`` is finite.
        """
        shifted = ((values - highest) * self.inverse_temperature).astype(np.float64)
        p: Floats = np.exp(shifted)
        p[shifted < LIVE_FLOOR] = 0.0
        if self._limited is True:
            p = _normalise(_within(self._head, p))
        else:
            assert total is not None
            # With top-k off the mass outside the window still counts for top-p.
            limited = self._limited is not False
            own = _normalise(_within(self._head, p)) if limited else p
            p = _choose(self._limited, own, p / total)
        if self._nucleus is not None:
            p[:, 1:][p[:, :-1].cumsum(axis=1) > self._nucleus] = 0.0
        if self._unfinished is not False:
            p = _choose(self._unfinished, _normalise(p), p)
        if self._floored is not False:
            p[p < self._floor * p[:, :1]] = 0.0
            p = _choose(self._floored, _normalise(p), p)
        return p

    def cut(self, probabilities: Floats, ids: Ints) -> tuple[Floats, Ints]:
        """Concept weights and their ids: the first entries, renormalised."""
        if self._cutting is False:
            return probabilities, ids
        weights = _within(self._cut_head, probabilities)
        weights = _choose(self._cutting, _normalise(weights), weights)
        return weights, repeat_first(weights > 0, ids)

    def add_noise(self, weights: Floats, ids: Ints, position: Ints) -> tuple[Floats, Ints]:
        """Gumbel-softmax where a row asked for it, sorted again; other rows as they came.

        ``position``: ``[num_rows, 1]``.
        """
        if self._noisy is False:
            return weights, ids
        counter = (position << 32) | (philox.GUMBEL << 24) | ids
        noise, live = gumbel(self._seed, counter).astype(np.float64), weights > 0
        logs = np.log(np.where(live, weights, 1.0))
        scores = np.where(live, (logs + noise) / self._tau, -np.inf)
        shifted = scores - scores.max(axis=1, keepdims=True)
        noised = _normalise(np.where(shifted >= LIVE_FLOOR, np.exp(shifted), 0.0))
        order = np.argsort(-noised, axis=1, kind="stable")
        noised = np.take_along_axis(noised, order, axis=1)
        noised_ids = repeat_first(noised > 0, np.take_along_axis(ids, order, axis=1))
        return _choose(self._noisy, noised, weights), _choose(self._noisy, noised_ids, ids)


def _rows(mask: Mask) -> Mask | bool:
    """True for all rows, False for none, the mask for some."""
    # The cheapest of numpy's ways to ask
    count = np.count_nonzero(mask)
    if count == mask.size:
        return True
    return mask if count else False


def _choose(rows: Mask | bool, yes: _Values, no: _Values) -> _Values:
    """One or the other by row."""
    if rows is True:
        return yes
    return no if rows is False else np.where(rows, yes, no)  # type: ignore[return-value]


def _head(lengths: Ints, kept: int) -> Mask | None:
    """Where the first entries of each row are, ``None`` if that is everywhere."""
    return np.arange(kept) < lengths if np.count_nonzero(lengths < kept) else None


def _within(head: Mask | None, p: Floats) -> Floats:
    return p if head is None else np.where(head, p, 0.0)


def _normalise(values: Floats) -> Floats:
    # Summed from first to last: entries without mass change nothing. No row is without any mass.
    normalised: Floats = values / values.cumsum(axis=1)[:, -1:]
    return normalised


def repeat_first(live: Mask, ids: Ints) -> Ints:
    """Give dead entries the id of entry 0, so that every id is a valid address."""
    return np.where(live, ids, ids[:, :1])


def gumbel(seed: Ints, counter: Ints) -> Floats:
    """Bit for bit what ``philox.gumbel`` draws; ``seed`` broadcasts against ``counter``."""
    word = _first_word(seed.astype(np.uint64), counter.astype(np.uint64)).astype(np.int64)
    # torch's logarithm, whose last bits are not numpy's.
    return philox.gumbel_of(torch.from_numpy(word)).numpy()


def _first_word(seed: NDArray[np.uint64], counter: NDArray[np.uint64]) -> NDArray[np.uint64]:
    # The lanes of `philox.philox_4x32`: (c0, c2) in even rounds and (c2, c0) in odd ones.
    first = np.arange(2).reshape(2, 1, 1) == 0
    multipliers = np.where(first, _MULTIPLIERS[0], _MULTIPLIERS[1])
    # [rounds, 2, num_rows, 1]: round 0 makes (c2, c0), so its keys come in the order (k1, k0).
    keys = np.stack((seed >> _HALF, seed)) + _ROUND * np.where(first, _WEYLS[1], _WEYLS[0])
    multiplied = np.zeros((2, *counter.shape), dtype=np.uint64)
    multiplied[0] = counter & _WORD
    carried = np.zeros_like(multiplied)
    carried[1] = counter >> _HALF
    for i in range(philox.ROUNDS):
        lanes = slice(None, None, -1 if i % 2 else 1)
        product = multiplied * multipliers[lanes]
        np.right_shift(product, _HALF, out=multiplied)
        multiplied ^= carried
        multiplied ^= keys[i][lanes]
        # Only what is multiplied next has to be cut to 32 bits.
        multiplied &= _WORD
        carried = product[::-1]
    word: NDArray[np.uint64] = multiplied[0]
    return word
