"""How sure a model is of its next token, from what a backend gives. Pure Python, no tensors."""

import bisect
import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

TOP = 20
"""Entries that every backend gives, and the most that vLLM gives unless it is told to give more."""

CONCEPT_TEMPERATURE, CONCEPT_TOP_P = 0.6, 0.95
"""Of Soft Thinking's concept tokens (arXiv 2505.15778)."""


@dataclass(frozen=True)
class FirstTokenSignals:
    """Facts about the distribution that one token was sampled from, at temperature 1.

    Attributes
    ----------
    top
        Texts and natural logarithms of probabilities, largest first, at most :data:`TOP`.
    entropy
        Nats, full vocabulary; ``None`` where the backend gives only ``top``.
    """

    top: tuple[tuple[str, float], ...]
    entropy: float | None = None

    def topk_entropy(self, *, published: bool = False) -> float:
        """Entropy of ``top`` renormalised, in nats.

        ``published`` collapses equal texts, as the authors' dictionary does, and is NaN where a
        probability is zero, as their logarithm is.
        """
        if not published:
            return entropy([math.exp(value) for _, value in self.top])
        probabilities = {text: math.exp(value) for text, value in self.top}
        if 0.0 in probabilities.values():
            return math.nan
        return entropy(list(probabilities.values()))

    def max_probability(self) -> float:
        """Of the most likely token."""
        return math.exp(self.top[0][1]) if self.top else math.nan

    def concept_entropy(self) -> float:
        """Entropy of the concept token that Soft Thinking would make, in nats."""
        if not self.top:
            return math.nan
        highest = self.top[0][1]
        weights = [math.exp((value - highest) / CONCEPT_TEMPERATURE) for _, value in self.top]
        total, passed, kept = sum(weights), 0.0, []
        for weight in weights:
            # The entry that crosses top_p stays.
            if passed >= CONCEPT_TOP_P * total:
                break
            kept.append(weight)
            passed += weight
        return entropy(kept)


def entropy(weights: Sequence[float]) -> float:
    """Entropy of weights after normalisation, in nats; NaN where they have no finite positive sum.

    >>> round(entropy([1, 1]), 4)
    0.6931
    """
    total = sum(weights)
    if not (math.isfinite(total) and total > 0):
        return math.nan
    # max: the entropy of one weight must not be -0.0
    return max(0.0, -sum(w / total * math.log(w / total) for w in weights if w > 0))


def score_of(top: Mapping[str, float], *, reading: str, strip: bool) -> float:
    """A quality score from 0 to 9 out of the probabilities of the token that should be a digit.

    Parameters
    ----------
    top
        Probability by text.
    reading
        ``greedy``: the most likely token, 0 if it is no number; ``average``: the mean over the
        numbers, renormalised (SpecReason, ``get_score``).
    strip
        Whether " 9" is a 9; in the authors' code it is not.
    """
    digits: dict[str, float] = {}
    for text, probability in top.items():
        name = text.strip() if strip else text
        digits[name] = digits.get(name, 0.0) + probability
    if reading == "greedy":
        best = max(digits, key=lambda name: digits[name], default="")
        return float(best) if best.isdecimal() else 0.0
    numbers = {float(name): p for name, p in digits.items() if name.isdecimal() and len(name) < 4}
    total = sum(numbers.values())
    return sum(number * p for number, p in numbers.items()) / total if total > 0 else 0.0


class RunningQuantile:
    """The value that a share of the last ``window`` values lies above."""

    def __init__(self, share: float, window: int) -> None:
        self._share = share
        self._recent: deque[float] = deque(maxlen=window)
        self._sorted: list[float] = []

    def is_above(self, value: float) -> bool:
        """Take the value in, and say whether it belongs to the upper share."""
        if len(self._recent) == self._recent.maxlen:
            del self._sorted[bisect.bisect_left(self._sorted, self._recent[0])]
        self._recent.append(value)
        bisect.insort(self._sorted, value)
        count = len(self._sorted)
        # Ties share their middle rank, or a run of equal values would all be above or below.
        rank = (
            bisect.bisect_left(self._sorted, value) + bisect.bisect_right(self._sorted, value)
        ) / 2
        return rank > (1 - self._share) * count

    @property
    def threshold(self) -> float:
        """The quantile as it stands."""
        if not self._sorted:
            return math.nan
        index = min(int((1 - self._share) * len(self._sorted)), len(self._sorted) - 1)
        return self._sorted[index]
