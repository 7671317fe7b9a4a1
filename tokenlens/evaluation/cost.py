"""Accuracy at equal token cost: what an arm had got right when it had spent so much.

An answer that ends within a limit of t tokens is the answer that a run with that limit would have
given, and one that does not is wrong there. So the records of one run hold every smaller limit::

    A(t) = share of the answers that are right and have at most t tokens
    C(t) = mean of min(tokens, t)                                    tokens an answer

A over C is the curve of an arm, from nothing to its own mean cost; behind that it is level, as more
tokens are of no use to it. Two arms are compared at one cost C, each with the limit that costs it
so much. It does not hold for specs that know their limit, such as a thinking budget.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tokenlens.evaluation.records import Record
from tokenlens.evaluation.statistics import Comparison, compare

Numbers = NDArray[np.float64]


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
    """

    def __init__(self, tokens: Sequence[float], correct: Sequence[bool]) -> None:
        if len(tokens) != len(correct):
            raise ValueError(
                f"correct: got {len(correct)} values; allowed: as many as tokens, {len(tokens)}"
            )
        self._tokens: Numbers = np.asarray(tokens, dtype=float)
        self._correct: Numbers = np.asarray(correct, dtype=float)
        self._sorted = np.sort(self._tokens)
        self._before = np.concatenate(([0.0], np.cumsum(self._sorted)))

    @property
    def mean_cost(self) -> float:
        """Tokens an answer, without a limit."""
        return float(self._tokens.mean()) if len(self._tokens) else 0.0

    def cost(self, limit: Numbers | float) -> Numbers:
        """C: tokens an answer with a limit."""
        n = len(self._sorted)
        limits = np.asarray(limit, dtype=float)
        within = np.searchsorted(self._sorted, limits, side="right")
        return np.asarray((self._before[within] + (n - within) * limits) / max(1, n))

    def limit(self, cost: float) -> float:
        """The limit that costs so many tokens an answer; infinite from the mean cost on."""
        n = len(self._sorted)
        # Costs that end up a hair under the mean by rounding are the mean.
        if cost >= self.mean_cost * (1 - 1e-12):
            return float("inf")
        costs = self.cost(self._sorted)
        place = int(np.searchsorted(costs, cost, side="left"))
        # Between two lengths the cost grows by the share of answers that are longer.
        return float((cost * n - self._before[place]) / (n - place))

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
        order = np.argsort(self._tokens, kind="stable")
        right = np.cumsum(self._correct[order]) / max(1, len(order))
        costs = self.cost(self._sorted)
        return np.concatenate(([0.0], costs)), np.concatenate(([0.0], right))


def curve(records: Sequence[Record]) -> Curve:
    """The curve of an arm's records."""
    return Curve([one.tokens for one in records], [one.correct for one in records])


def at_equal_cost(left: Sequence[Record], right: Sequence[Record]) -> EqualCost:
    """``left - right`` at the smaller of their mean costs, paired by question.

    The limits are those of these records; the intervals are over questions, with the limits given.
    """
    one, other = curve(left), curve(right)
    cost = min(one.mean_cost, other.mean_cost)
    return EqualCost(
        cost,
        compare(_means(left, one.right_within(cost)), _means(right, other.right_within(cost))),
        compare(_means(left, one.shares_of_area(cost)), _means(right, other.shares_of_area(cost))),
    )


def _means(records: Sequence[Record], values: Numbers) -> list[float]:
    """Mean of each question's answers, in the questions' order."""
    found: dict[str, list[float]] = defaultdict(list)
    for record, value in zip(records, values.tolist()):
        found[record.question].append(value)
    return [sum(one) / len(one) for one in found.values()]
