"""A pool of lines with an early drop and a weighted vote: what is known of HyPER, and no more.

HyPER (arXiv 2602.06527) adds actions inside a mixture of experts, whose definitions were not found;
this is not HyPER. Confidence of a token: the mean negative log-probability of its largest entries,
DeepConf's measure (arXiv 2508.15260): the larger, the surer.
"""

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field

from tokenlens.controllers.flow import finish, plain
from tokenlens.controllers.lines import elect, several
from tokenlens.controllers.page import Page
from tokenlens.controllers.settings import Needed, PolicyBase, Probability


class ConfidencePool(PolicyBase):
    """``warm`` whole lines set a threshold; further ones are dropped where they fall below it.

    The vote weighs a line by ``length_weight`` times its length and ``1 - length_weight`` times its
    confidence, both over the largest in the pool. The paper's weights are .6 and .4; the form of
    its terms is not known.
    """

    needs_ids: ClassVar[str | None] = "it reads the largest probabilities of each token"

    policy: Literal["confidence_pool"] = "confidence_pool"
    n: int = Field(16, ge=2, le=1024, description="lines, the warm-up included")
    warm: int = Field(4, ge=1, le=1024, description="lines that are never dropped")
    keep: Probability = Field(
        0.5, description="share of the warm-up that would pass; 0.1 is the best tenth"
    )
    period: int = Field(64, ge=1, le=65_536, description="tokens between two looks")
    top: int = Field(20, ge=2, le=20, description="entries of a token's confidence")
    length_weight: Probability = 0.6

    def needed(self) -> Needed:
        """As many forks as lines."""
        return Needed(forks=self.n)


class Confidences:
    """One request."""

    def __init__(self, config: ConfidencePool) -> None:
        self._config = config

    async def run(self, page: Page) -> None:
        """Write the warm-up, then the rest, and vote."""
        config = self._config
        page.desk.use("forks", config.n)
        warm = min(config.warm, config.n)
        lines = [page.branch("line", i) for i in range(config.n)]
        seen: dict[int, list[float]] = {}

        def writer(threshold: float | None):  # type: ignore[no-untyped-def]
            async def write(line: Page) -> float | None:
                values = seen.setdefault(id(line), [])
                while line.is_thinking and line.tokens_left() > 0:
                    span = await line.write(config.period, facts=config.top)
                    line.take(span)
                    chunk = [confidence_of([v for _, v in fact.top]) for fact in span.facts]
                    values += chunk
                    if threshold is not None and chunk and _mean(chunk) < threshold:
                        line.mark.end, line.mark.error = "dropped", "below the warm-up's threshold"
                        return _mean(values)
                    if span.finish == "length" and span.tokens < config.period:
                        break
                await finish(line)
                return _mean(values) if values else None

            return write

        first = await several(lines[:warm], writer(None))
        known = sorted((v for v in first if v is not None), reverse=True)
        threshold = known[min(len(known) - 1, int(config.keep * len(known)))] if known else None
        rest = await several(lines[warm:], writer(threshold)) if config.n > warm else []
        values = [0.0 if value is None else value for value in (*first, *rest)]
        elect(page, lines, weigh([line.tokens for line in lines], values, config.length_weight))


def confidence_of(log_probs: Sequence[float]) -> float:
    """Mean negative log-probability of the entries."""
    return -sum(log_probs) / len(log_probs) if log_probs else 0.0


def weigh(lengths: Sequence[int], confidences: Sequence[float], share: float) -> list[float]:
    """The weights of a vote."""
    longest, surest = max(lengths, default=0) or 1, max(confidences, default=0.0) or 1.0
    return [
        share * length / longest + (1 - share) * max(0.0, value) / surest
        for length, value in zip(lengths, confidences)
    ]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


__all__ = ["ConfidencePool", "Confidences", "confidence_of", "plain", "weigh"]
