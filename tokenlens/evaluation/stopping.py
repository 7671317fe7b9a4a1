"""When a run may end before its questions do: what it may cost, and how exact it has to be."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from tokenlens.evaluation.arms import Arm
from tokenlens.evaluation.records import Record
from tokenlens.evaluation.statistics import Z

FEWEST = 20
"""Questions before anything is said of how exact a figure is."""


class Stop:
    """Bounds of a run, asked after every batch that all arms have answered.

    Parameters
    ----------
    budget_tokens
        Tokens of all arms together.
    until_ci
        Points to either side of every accuracy and of every paired difference.
    samples
        Answers a question.

    Raises
    ------
    ValueError
        A bound is not positive.
    """

    def __init__(
        self, arms: Sequence[Arm], budget_tokens: int | None, until_ci: float | None, samples: int
    ) -> None:
        if budget_tokens is not None and budget_tokens < 1:
            raise ValueError(f"budget_tokens: got {budget_tokens}; allowed: at least 1")
        if until_ci is not None and not 0 < until_ci <= 100:
            raise ValueError(f"until_ci: got {until_ci}; allowed: points above 0, at most 100")
        self._budget, self._until, self._samples = budget_tokens, until_ci, samples
        self._pairs = [(of, arm.name) for arm in arms for of in arm.controls]

    @property
    def staged(self) -> bool:
        """Whether every batch has to be answered by all arms before the next."""
        return self._budget is not None or self._until is not None

    def reason(self, records: Mapping[str, Sequence[Record]], batches: int, size: int) -> str:
        """Why the run ends here; empty where it goes on.

        Parameters
        ----------
        records
            Of every arm.
        batches, size
            How many batches all arms have answered, and the answers of each.
        """
        answers = batches * size
        common = {name: found[:answers] for name, found in records.items()}
        if self._until is not None:
            widest = max(half_widths(common, self._pairs, self._samples), default=math.inf)
            if 100 * widest <= self._until:
                return f"every figure is known to {100 * widest:.2f} points to either side"
        if self._budget is not None:
            spent = sum(one.tokens for found in records.values() for one in found)
            paid = min(map(len, records.values()), default=0) > answers
            # What the next batch will cost is guessed from those before.
            batch = sum(one.tokens for found in common.values() for one in found) / batches
            if not paid and spent + batch > self._budget:
                return f"{spent} of {self._budget} tokens are used, a batch takes about {batch:.0f}"
        return ""


def half_width(values: Sequence[float]) -> float:
    """Half of an interval of 95 % that may be looked at after every question.

    The rule of Chow and Robbins 1965 for sequential intervals of a fixed width: of n values with
    variance v, ``z sqrt((v + z^2/n) / n)``. They add 1/n, and prove it for widths that go to 0. At
    2 points that covers shares below 10 % in 89 to 92 of 100 simulated runs, and z^2/n covers all
    in 94 or more. It is as wide as Wilson's interval where all values are equal, and costs under
    one question in a hundred where half are right.

    To stop when an interval is narrow, whatever it holds, does not favour one outcome, as to stop
    when a difference is significant would: at no difference the spread does not tell the sign. What
    is left of the optional stopping: the variance of a share p is p (1 - p), so runs whose mean is
    by chance farther from a half end earlier, and on average the mean is off, away from a half, by
    about ``|1 - 2p| / (p (1 - p)) (width / z)^2``: at 2 points and p = 0.1 by 0.1 points.
    """
    data = np.asarray(values, dtype=float)
    n = len(data)
    if n < FEWEST:
        return math.inf
    return Z * math.sqrt((float(data.var()) + Z * Z / n) / n)


def half_widths(
    records: Mapping[str, Sequence[Record]], pairs: Sequence[tuple[str, str]], samples: int
) -> list[float]:
    """Of every arm's accuracy, and of every pair's difference; of whole questions."""
    means = {name: _means(found, samples) for name, found in records.items()}
    found = [half_width(list(values.values())) for values in means.values()]
    for left, right in pairs:
        one, other = means[left], means[right]
        found.append(half_width([one[name] - other[name] for name in one if name in other]))
    return found


def _means(records: Sequence[Record], samples: int) -> dict[str, float]:
    values: dict[str, list[bool]] = defaultdict(list)
    for record in records:
        values[record.question].append(record.correct)
    return {name: sum(one) / samples for name, one in values.items() if len(one) == samples}
