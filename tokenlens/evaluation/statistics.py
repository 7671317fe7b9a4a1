"""Estimates with their uncertainty. Questions are the sampling unit.

Samples of one question are not independent, so every interval and test is over questions: a
question's value is the mean of its samples.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

RESAMPLES = 10_000
Z = 1.959964
"""Of a two-sided interval of 95 %."""
EXACT_FLIPS = 14
"""Up to so many differing questions every assignment of signs is counted."""


class Estimate(NamedTuple):
    """A mean and its interval of 95 %."""

    mean: float
    low: float
    high: float


class Comparison(NamedTuple):
    """A paired difference, its interval of 95 %, and the p-value of a test of no difference."""

    difference: float
    low: float
    high: float
    p: float


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Chance that one of ``k`` samples is right, unbiased: Chen et al., arXiv 2107.03374, eq. 1.

    Parameters
    ----------
    samples, correct
        How many were drawn, and how many of them are right.

    Raises
    ------
    ValueError
        ``k`` is not between 1 and ``samples``, or ``correct`` not between 0 and ``samples``.
    """
    if not 1 <= k <= samples:
        raise ValueError(f"k: got {k}; allowed: 1 to the number of samples, {samples}")
    if not 0 <= correct <= samples:
        raise ValueError(f"correct: got {correct}; allowed: 0 to {samples}")
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


def wilson(successes: int, trials: int) -> Estimate:
    """A share with Wilson's interval, which stays inside 0 and 1 also for few trials."""
    if trials == 0:
        return Estimate(0.0, 0.0, 1.0)
    share, spread = successes / trials, Z * Z / trials
    centre = (share + spread / 2) / (1 + spread)
    half = Z * math.sqrt(share * (1 - share) / trials + spread / (4 * trials)) / (1 + spread)
    # At 0 and 1 the bounds are exact; rounding would leave them a hair outside.
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == trials else centre + half
    return Estimate(share, low, high)


def interval(values: Sequence[float], seed: int = 0) -> Estimate:
    """A mean over questions: Wilson where each value is 0 or 1, else a percentile bootstrap."""
    data = np.asarray(values, dtype=float)
    if len(data) and np.isin(data, (0.0, 1.0)).all():
        return wilson(int(data.sum()), len(data))
    return Estimate(*_bootstrap(data, seed))


def compare(left: Sequence[float], right: Sequence[float], seed: int = 0) -> Comparison:
    """``left - right``, paired by question.

    The interval is a bootstrap over questions; the test flips the signs of the differences, all
    ways where at most 14 questions differ. For single samples that is McNemar's exact test.
    """
    if len(left) != len(right):
        raise ValueError(f"right: got {len(right)} values; allowed: as many as left, {len(left)}")
    difference = np.asarray(left, dtype=float) - np.asarray(right, dtype=float)
    mean, low, high = _bootstrap(difference, seed)
    return Comparison(mean, low, high, _flip_test(difference, seed))


def from_resamples(difference: float, drawn: np.ndarray) -> Comparison:
    """A difference with the percentile interval of its resamples, and the p-value that fits it.

    p is twice the smaller share of resamples at or beyond 0, what was seen counted as one of them:
    it is below 0.05 where the interval leaves 0 out, and never 0.
    """
    low, high = np.quantile(drawn, (0.025, 0.975))
    beyond = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    p = min(1.0, 2 * (beyond + 1) / (len(drawn) + 1))
    return Comparison(difference, float(low), float(high), p)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for being many (Holm 1979)."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted = [1.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def _bootstrap(data: np.ndarray, seed: int) -> tuple[float, float, float]:
    if len(data) == 0:
        return 0.0, 0.0, 0.0
    rng = np.random.default_rng(seed)
    # In pieces: 10 000 resamples of 10 000 questions would take a gigabyte.
    piece = max(1, 1_000_000 // len(data))
    means = [
        data[rng.integers(0, len(data), (min(piece, RESAMPLES - start), len(data)))].mean(axis=1)
        for start in range(0, RESAMPLES, piece)
    ]
    low, high = np.quantile(np.concatenate(means), (0.025, 0.975))
    return float(data.mean()), float(low), float(high)


def _flip_test(difference: np.ndarray, seed: int) -> float:
    moved = difference[difference != 0]
    if len(moved) == 0:
        return 1.0
    if (np.abs(moved) == 1).all():
        fewer, n = min(int((moved > 0).sum()), int((moved < 0).sum())), len(moved)
        tail = sum(math.comb(n, i) for i in range(fewer + 1))
        return min(1.0, float(2 * tail / 2**n))
    seen = abs(moved.sum()) - 1e-12
    if len(moved) <= EXACT_FLIPS:
        bits = np.arange(1 << len(moved))[:, None] >> np.arange(len(moved)) & 1
        sums = np.abs((1 - 2 * bits) @ moved)
        return float((sums >= seen).mean())
    rng = np.random.default_rng(seed)
    piece = max(1, 1_000_000 // len(moved))
    hits = 0
    for start in range(0, RESAMPLES, piece):
        signs = rng.integers(0, 2, (min(piece, RESAMPLES - start), len(moved))) * 2 - 1
        hits += int((np.abs(signs @ moved) >= seen).sum())
    # What was seen is one of the assignments: p is never 0.
    return (hits + 1) / (RESAMPLES + 1)
