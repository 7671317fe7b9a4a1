"""Filters, cut and noise on the few entries that each row has left, for a processor.

The same arithmetic as in ``naive.py``, in numpy: on arrays this small a call costs more than its
work, and numpy's calls are the cheaper ones. Sums over entries are taken from first to last, so
that entries without mass change nothing, however many follow.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from .. import philox
from .naive import LIVE_FLOOR

# [num_rows, width] or [num_rows, 1]
Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]

_TINY = np.finfo(np.float64).tiny
_WORD, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)
_MULTIPLIERS = np.array([philox.MULTIPLIER_A, philox.MULTIPLIER_B], dtype=np.uint64)
_WEYLS = np.array([philox.WEYL_A, philox.WEYL_B], dtype=np.uint64)
_ROUND = np.arange(philox.ROUNDS, dtype=np.uint64).reshape(-1, 1, 1, 1)


class Parameters(NamedTuple):
    """What each row asked for, ``[num_rows, 1]`` each."""

    inverse_temperature: Floats
    top_k: Ints
    top_p: Floats
    min_p: Floats
    max_entries: Ints
    noise_temperature: Floats
    seed: Ints
    position: Ints


def _normalise(values: Floats) -> Floats:
    # The floor only matters to a row without mass, which stays 0.
    return values / np.maximum(np.cumsum(values, axis=1)[:, -1:], _TINY)


def probabilities_of(
    values: Floats, highest: Floats, total: Floats | None, parameters: Parameters
) -> Floats:
    """Filtered probabilities ``[num_rows, kept]`` float64 of the largest logits, in order.

    ``total`` is needed by rows without a top-k. What a row is divided by depends on its own
    parameters alone, so that its bits are the same in any batch.
    """
    shifted = ((values - highest) * parameters.inverse_temperature).astype(np.float64)
    p = np.exp(shifted)
    p[shifted < LIVE_FLOOR] = 0.0
    limit, kept = parameters.top_k, p.shape[1]
    if total is None:
        p = _normalise(_head(p, limit))
    else:
        # With top-k off the mass outside the window still counts for top-p.
        p = np.where(limit > 0, _normalise(_head(p, np.where(limit > 0, limit, kept))), p / total)
    # Float64 holds the float32 parameters exactly; the literal comparison would round the mass.
    nucleus = parameters.top_p.astype(np.float64)
    filtering = nucleus < 1.0
    if filtering.any():
        beyond = np.cumsum(p, axis=1)[:, :-1] > nucleus
        p[:, 1:] = np.where(beyond & filtering, 0.0, p[:, 1:])
    unfinished = filtering | (limit <= 0)
    if unfinished.any():
        p = np.where(unfinished, _normalise(p), p)
    floor = parameters.min_p
    if floor.any():
        p = np.where(p < floor.astype(np.float64) * p[:, :1], 0.0, p)
        p = np.where(floor > 0, _normalise(p), p)
    return p


def _head(p: Floats, lengths: Ints) -> Floats:
    """The first entries of each row, 0 behind them."""
    kept = p.shape[1]
    return p if lengths.min() >= kept else np.where(np.arange(kept) < lengths, p, 0.0)


def cut(probabilities: Floats, ids: Ints, max_entries: Ints, most: Ints) -> tuple[Floats, Ints]:
    """Concept weights and their ids: the first entries, renormalised.

    ``most`` is how many entries a row may have: one that may keep them all keeps its bits.
    """
    cutting = max_entries < most
    if not cutting.any():
        return probabilities, ids
    weights = _head(probabilities, max_entries)
    weights = np.where(cutting, _normalise(weights), weights)
    return weights, repeat_first(weights > 0, ids)


def repeat_first(live: NDArray[np.bool_], ids: Ints) -> Ints:
    """Give dead entries the id of entry 0, so that every id is a valid address."""
    return np.where(live, ids, ids[:, :1])


def add_noise(weights: Floats, ids: Ints, parameters: Parameters) -> tuple[Floats, Ints]:
    """Gumbel-softmax where a row asked for it, sorted again; other rows as they came."""
    tau = parameters.noise_temperature.astype(np.float64)
    noisy = tau > 0
    counter = (parameters.position << 32) | (philox.GUMBEL << 24) | ids
    noise = gumbel(parameters.seed, counter).astype(np.float64)
    scores = np.where(weights > 0, (np.log(weights) + noise) / np.where(noisy, tau, 1.0), -np.inf)
    highest = scores.max(axis=1, keepdims=True)
    shifted = scores - np.where(np.isfinite(highest), highest, 0.0)
    noised = _normalise(np.where(shifted >= LIVE_FLOOR, np.exp(shifted), 0.0))
    order = np.argsort(-noised, axis=1, kind="stable")
    noised = np.take_along_axis(noised, order, axis=1)
    noised_ids = repeat_first(noised > 0, np.take_along_axis(ids, order, axis=1))
    return np.where(noisy, noised, weights), np.where(noisy, noised_ids, ids)


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
