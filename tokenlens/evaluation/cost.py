"""Accuracy at equal token cost: what an arm had got right when it had spent so much.

An answer that ends within a limit of t tokens is the answer that a run with that limit would have
given, and one that does not is wrong there. So the records of one run hold every smaller limit::

    A(t) = share of the answers that are right and have at most t tokens
    C(t) = mean of min(tokens, t)                                    tokens an answer

A over C is the curve of an arm, from nothing to its own mean cost; behind that it is level, as more
tokens are of no use to it. Two arms are compared at one cost C, each with the limit that costs it
so much. It does not hold for specs that know their limit, such as a thinking budget.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tokenlens.evaluation.records import Record
from tokenlens.evaluation.statistics import Comparison, from_resamples

Numbers = NDArray[np.float64]
RESAMPLES = 2_000
"""Of questions; each makes both curves anew."""


class EqualCost(NamedTuple):
    """Two arms at one cost.

    Parameters
    ----------
    cost
        Tokens an answer: the smaller of the two means.
    accuracy
        Difference of the accuracies at that cost.
    area
        Difference of the mean accuracies over all costs up to it.
    """

    cost: float
    accuracy: Comparison
    area: Comparison


class Curve:
    """Accuracy over cost of one arm.

    Parameters
    ----------
    tokens, correct
        Of each answer.
    weights
        How much each answer counts, none below 0; all alike where nothing is given.

    Raises
    ------
    ValueError
        The lengths differ, or the weights are no weights.
    """

    def __init__(
        self,
        tokens: Sequence[float] | Numbers,
        correct: Sequence[bool] | Numbers,
        weights: Numbers | None = None,
    ) -> None:
        self._tokens: Numbers = np.asarray(tokens, dtype=float)
        self._correct: Numbers = np.asarray(correct, dtype=float)
        n = len(self._tokens)
        given = np.ones(n) if weights is None else np.asarray(weights, dtype=float)
        for name, one in (("correct", self._correct), ("weights", given)):
            if len(one) != n:
                raise ValueError(f"{name}: got {len(one)} values; allowed: as many as tokens, {n}")
        whole = float(given.sum())
        if n and not (whole > 0 and (given >= 0).all() and np.isfinite(given).all()):
            raise ValueError("weights: allowed: finite, none below 0, one above 0")
        # Not made shares of 1: sums of whole numbers stay exact.
        self._weights, self._whole = given, whole or 1.0
        self._order = np.argsort(self._tokens, kind="stable")
        self._sorted = self._tokens[self._order]
        mine = given[self._order]
        # Of the first k in the order of their lengths, from none on: their weight, their tokens.
        self._within = np.concatenate(([0.0], np.cumsum(mine)))
        self._before = np.concatenate(([0.0], np.cumsum(mine * self._sorted)))

    @property
    def mean_cost(self) -> float:
        """Tokens an answer, without a limit."""
        return float(self._before[-1] / self._whole)

    def cost(self, limit: Numbers | float) -> Numbers:
        """C: tokens an answer with a limit."""
        limits = np.asarray(limit, dtype=float)
        if len(self._sorted):
            limits = np.minimum(limits, self._sorted[-1])
        within = np.searchsorted(self._sorted, limits, side="right")
        longer = self._within[-1] - self._within[within]
        return np.asarray((self._before[within] + longer * limits) / self._whole)

    def limit(self, cost: float) -> float:
        """The limit that costs so many tokens an answer; infinite from the mean cost on."""
        # Costs that end up a hair under the mean by rounding are the mean.
        if cost >= self.mean_cost * (1 - 1e-12):
            return float("inf")
        costs = self.cost(self._sorted)
        place = int(np.searchsorted(costs, cost, side="left"))
        longer = self._within[-1] - self._within[place]
        # Between two lengths the cost grows by the share of answers that are longer.
        return float((cost * self._whole - self._before[place]) / longer)

    def accuracy(self, cost: float) -> float:
        """A at the limit that costs so much."""
        return float(self._weights @ self.right_within(cost)) / self._whole

    def area(self, cost: float) -> float:
        """Mean accuracy over all costs up to this one."""
        return float(self._weights @ self.shares_of_area(cost)) / self._whole

    def right_within(self, cost: float) -> Numbers:
        """For each answer, whether it is right at this cost."""
        # A limit that was computed back from a length may miss it by rounding.
        return self._correct * (self._tokens <= self.limit(cost) * (1 + 1e-9))

    def shares_of_area(self, cost: float) -> Numbers:
        """For each answer, its part of the mean accuracy over all costs up to this one.

        An answer counts from what it costs to have it on: ``correct * (cost - C(tokens)) / cost``,
        with the cost that lies behind the arm's own mean added for all that are right.
        """
        if cost <= 0:
            return np.zeros_like(self._correct)
        spent = self.cost(self._tokens)
        return self._correct * np.maximum(0.0, cost - spent) / cost

    def points(self) -> tuple[Numbers, Numbers]:
        """Costs and accuracies at every length of an answer, from nothing on; for a plot."""
        right = np.cumsum((self._weights * self._correct)[self._order]) / self._whole
        costs = self.cost(self._sorted)
        return np.concatenate(([0.0], costs)), np.concatenate(([0.0], right))


def curve(records: Sequence[Record]) -> Curve:
    """The curve of an arm's records."""
    return Curve([one.tokens for one in records], [one.correct for one in records])


def at_equal_cost(left: Sequence[Record], right: Sequence[Record], seed: int = 0) -> EqualCost:
    """``left - right`` at the smaller of their mean costs, paired by question.

    The intervals are a bootstrap over questions, with both answers to a question drawn together and
    the curves, the common cost and the limits made anew from what was drawn: how well the limits
    are known is part of them. p is twice the smaller share of resamples on one side of no
    difference. The records' order does not matter.

    Raises
    ------
    ValueError
        The two have not the same questions.
    """
    questions = sorted({record.question for record in left})
    others = {record.question for record in right}
    if others != set(questions):
        odd = sorted(others ^ set(questions))
        raise ValueError(
            f"right: its questions are not left's: {len(odd)} differ, {odd[0]!r} first; allowed:"
            " the same questions"
        )
    n = len(questions)
    if n == 0:
        nothing = Comparison(0.0, 0.0, 0.0, 1.0)
        return EqualCost(0.0, nothing, nothing)
    place = {question: i for i, question in enumerate(questions)}
    one, other = _Side(left, place), _Side(right, place)
    rng = np.random.default_rng(seed)
    drawn = np.array(
        [
            _differences(one, other, np.bincount(rng.integers(0, n, n), minlength=n))[1:]
            for _ in range(RESAMPLES)
        ]
    )
    cost, *seen = _differences(one, other, np.ones(n))
    accuracy, area = (from_resamples(value, drawn[:, i]) for i, value in enumerate(seen))
    return EqualCost(cost, accuracy, area)


class _Side:
    """One arm's answers; each question counts once, however many answers it has."""

    def __init__(self, records: Sequence[Record], place: dict[str, int]) -> None:
        # Sorted once: every curve of them then is sorted at once.
        rows = sorted((one.tokens, place[one.question], one.correct) for one in records)
        self._tokens = np.array([row[0] for row in rows], dtype=float)
        self._question = np.array([row[1] for row in rows])
        self._correct = np.array([row[2] for row in rows], dtype=float)
        self._share = 1 / np.bincount(self._question, minlength=len(place))

    def curve(self, counts: NDArray[np.int64] | Numbers) -> Curve:
        """With each question as often as it was drawn."""
        return Curve(self._tokens, self._correct, (counts * self._share)[self._question])


def _differences(
    left: _Side, right: _Side, counts: NDArray[np.int64] | Numbers
) -> tuple[float, float, float]:
    """The common cost, and the differences of the accuracies and of the areas at it."""
    one, other = left.curve(counts), right.curve(counts)
    cost = min(one.mean_cost, other.mean_cost)
    return (
        cost,
        one.accuracy(cost) - other.accuracy(cost),
        one.area(cost) - other.area(cost),
    )
