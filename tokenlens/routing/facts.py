"""What is known of one generated token, and a condition on it that ends a call before it.

Values of servers may be before the temperature, after it, or after the filters, too; what a caller
wants is made of them here, as far as the largest entries go. Pure Python, no tensors.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from tokenlens.routing.settings import Sampling

Scale = Literal["raw", "tempered", "processed"]
"""Log-probabilities before the temperature, after it, or after temperature and filters."""

Ranked = tuple[tuple[int, float], ...]

WHOLE = 1e-4
"""Mass that may be missing from a distribution that counts as known in full."""


@dataclass(frozen=True)
class Fact:
    """One generated token.

    Attributes
    ----------
    token
        Its id.
    log_prob
        Natural logarithm of its probability.
    top
        Ids and log-probabilities of the most likely tokens, largest first.
    entropy
        Nats, of the whole distribution; ``None`` where only ``top`` is known of it.
    """

    token: int
    log_prob: float
    top: Ranked = ()
    entropy: float | None = None

    @property
    def least_entropy(self) -> float:
        """The entropy, or the least that it can be: all that is not in ``top`` as one token."""
        if self.entropy is not None:
            return self.entropy
        shares = [math.exp(value) for _, value in self.top]
        rest = max(0.0, 1.0 - sum(shares))
        return max(0.0, -sum(p * math.log(p) for p in (*shares, rest) if p > 0))


@dataclass(frozen=True)
class Trip:
    """A condition that ends a call before the token whose distribution meets it.

    Attributes
    ----------
    entropy
        Nats from which on it is met.
    """

    entropy: float

    def is_met(self, fact: Fact) -> bool:
        """Whether this token's distribution meets it."""
        return fact.least_entropy >= self.entropy


def ranked(values: Mapping[int, float], most: int) -> Ranked:
    """The largest finite ones; equal ones by id."""
    finite = [(i, min(v, 0.0)) for i, v in values.items() if math.isfinite(v)]
    return tuple(sorted(finite, key=lambda pair: (-pair[1], pair[0]))[:most])


def fact_of(
    token: int, log_prob: float, top: Ranked, how: Sampling, scale: Scale, *, warped: bool
) -> Fact:
    """A fact out of a server's values.

    ``warped`` asks for them after temperature and filters. That is exact where the filters leave no
    more than ``top`` holds (``top_k`` of at most 20).
    """
    fact = Fact(token, log_prob, top)
    if warped and scale != "processed":
        fact = _warped(fact, how, scale)
    mass = sum(math.exp(value) for _, value in fact.top)
    if fact.top and mass >= 1 - WHOLE:
        return replace(fact, entropy=entropy_of([value for _, value in fact.top]))
    return fact


def entropy_of(log_probs: Sequence[float]) -> float:
    """Entropy in nats of a distribution that is given whole."""
    return max(0.0, -sum(math.exp(value) * value for value in log_probs))


def _warped(fact: Fact, how: Sampling, scale: Scale) -> Fact:
    temperature = 1.0 if how.temperature is None else how.temperature
    if not fact.top or temperature == 0:
        # Greedy requests have no filters and no temperature.
        return fact
    divisor = temperature if scale == "raw" else 1.0
    count = how.top_k or len(fact.top)
    scaled = [(token, value / divisor) for token, value in fact.top[:count]]
    highest = scaled[0][1]
    weights = [(token, math.exp(value - highest)) for token, value in scaled]
    total = sum(weight for _, weight in weights)
    top_p = 1.0 if how.top_p is None else how.top_p
    kept, passed = [], 0.0
    for token, weight in weights:
        # The entry that crosses top_p stays.
        if passed >= top_p * total:
            break
        kept.append((token, weight))
        passed += weight
    if not how.top_k and top_p == 1 and divisor == 1:
        return fact
    top = tuple((token, math.log(weight / passed)) for token, weight in kept if weight > 0)
    return Fact(fact.token, dict(top).get(fact.token, top[-1][1]), top)
