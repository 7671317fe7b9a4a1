"""CNTP: where the model is unsure, try several clauses and keep the likeliest (arXiv 2507.03038).

The number of trials grows with the entropy of the next token, after temperature and filters.
"""

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from tokenlens.controllers.children import first_failure, together
from tokenlens.controllers.desk import Span, reseeded
from tokenlens.controllers.flow import goes_on
from tokenlens.controllers.page import Page
from tokenlens.controllers.settings import PolicyBase, Texts
from tokenlens.controllers.stops import ControllerStop
from tokenlens.errors import BackendError, LimitError, SpecError
from tokenlens.routing.facts import Trip
from tokenlens.routing.settings import Sampling
from tokenlens.routing.signals import TOP
from tokenlens.routing.vocabulary import RouterVocabulary

MARKS = (".", ",", "\n", "?", "!", ":", ";", ")", "]", "}")


class Cntp(PolicyBase):
    """Trials: 1 + (most - 1) * clip((H - low) / (high - low), 0, 1), rounded down.

    ============= ==================================== ======================================
    field         default                              published (the authors' code)
    ============= ==================================== ======================================
    cap           64 tokens a trial                    none but the text's own budget
    ends          every token whose text ends in one   the first token of each mark's encoding
                  of ten marks                         (of Llama 2's "\\n" that is a blank)
    greedy        the first trial is greedy            all trials are sampled
    batch         all trials at once                   one after the other
    ============= ==================================== ======================================

    Perplexities of spans of unequal length are compared, the first token included, as in the paper.
    The entropy is exact in process and on servers with tokenlens, which end the call in the step
    (:mod:`tokenlens.methods.tripwire`). On others it is with ``top_k`` of at most 20; else it is
    the least that the 20 largest entries allow.
    """

    published: ClassVar[Mapping[str, Any]] = {
        "cap": None, "ends": "first", "greedy": "sampled", "batch": False,
    }  # fmt: skip
    needs_ids: ClassVar[str | None] = "it reads entropies, and compares tokens' probabilities"

    reads_warped: ClassVar[bool] = True
    trips: ClassVar[bool] = True

    policy: Literal["cntp"] = "cntp"
    low: float = Field(0.01, ge=0, le=100, description="nats")
    high: float = Field(1.5, ge=0, le=100, description="nats, above low")
    most: int = Field(10, ge=1, le=256, description="trials")
    marks: Texts = MARKS
    ends: Literal["any", "first"] = "any"
    cap: int | None = Field(64, ge=1, le=65_536)
    greedy: Literal["first", "sampled"] = "first"
    batch: bool = True

    @model_validator(mode="after")
    def _in_order(self) -> "Cntp":
        if self.high <= self.low:
            allowed = {"allowed": f"high above low, {self.low}"}
            raise PydanticCustomError("not_allowed", "allowed: {allowed}", allowed)
        return self

    def trials(self, entropy: float) -> int:
        """How many trials an entropy asks for."""
        share = (entropy - self.low) / (self.high - self.low)
        return int(1 + (self.most - 1) * min(max(share, 0.0), 1.0))


class Trials:
    """One request."""

    def __init__(self, config: Cntp) -> None:
        self._config = config

    async def run(self, page: Page) -> None:
        """Write the line."""
        config = self._config
        vocabulary = page.model.vocabulary
        assert vocabulary is not None
        stop = ControllerStop(ids=clause_ends(vocabulary, config.marks, config.ends))
        first = config.low + (config.high - config.low) / max(1, config.most - 1)
        # Rounding must not have a trip ask for one trial.
        trip = Trip(first) if config.most > 1 else None
        skip = False
        while goes_on(page):
            how = (1, None) if skip else (None, trip)
            span = await page.write(how[0], warped=True, trip=how[1])
            page.take(span)
            skip = False
            if span.finish != "trip" or span.tripped is None:
                continue
            count = config.trials(span.tripped.least_entropy)
            if count < 2 or page.tokens_left() <= 0:
                skip = True
                continue
            try:
                page.desk.use("forks", count)
            except LimitError as error:
                page.mark.note, trip = str(error), None
                continue
            page.take(await self._best(page, count, stop, span.tripped.least_entropy))

    async def _best(self, page: Page, count: int, stop: ControllerStop, entropy: float) -> Span:
        config = self._config
        at = page.tokens

        async def one(index: int) -> Span:
            line = page.branch("cntp", at, index, kind="trial")
            line.mark.value = entropy
            try:
                return await line.write(
                    config.cap, kind="trial", stop=stop, warped=True, facts=TOP,
                    sampling=self._how(page.sampling, line.sampling.seed, index),
                )  # fmt: skip
            except BackendError as error:
                line.mark.error = str(error)[:200]
                raise
            finally:
                await line.over()

        calls = [lambda index=index: one(index) for index in range(count)]
        if config.batch:
            found = await together(calls)
        else:
            found = [(await together([call]))[0] for call in calls]
        if (failure := first_failure(found)) is not None:
            raise failure
        spans = [one for one in found if isinstance(one, Span) and one.tokens]
        for span in spans:
            assert span.mark is not None
            span.mark.value = perplexity(span)
        return min(spans, key=perplexity)

    def _how(self, how: Sampling, seed: int, index: int) -> Sampling:
        if how.temperature != 0:
            return reseeded(how, seed)
        if index == 0 and self._config.greedy == "first":
            return how
        return reseeded(how, seed, temperature=1.0)


def perplexity(span: Span) -> float:
    """Of a span, by the probabilities that its tokens were drawn with."""
    values = span.log_probs()
    return math.exp(-sum(values) / len(values)) if values else math.inf


@lru_cache(maxsize=64)
def clause_ends(
    vocabulary: RouterVocabulary, marks: tuple[str, ...], kind: Literal["any", "first"]
) -> frozenset[int]:
    """Tokens that end a clause.

    Raises
    ------
    SpecError
        The vocabulary has none.
    """
    if kind == "first":
        found = frozenset(ids[0] for mark in marks if (ids := vocabulary.encode(mark)))
    else:
        plain = tuple(mark for mark in marks if mark.strip())
        blank = tuple(mark for mark in marks if not mark.strip())
        found = frozenset(
            i for i, piece in enumerate(vocabulary.pieces)
            if i not in vocabulary.eos_ids
            and (piece.strip().endswith(plain or "\0") or piece.endswith(blank or "\0"))
        )  # fmt: skip
    if not found:
        raise SpecError.of("policy.marks", list(marks), "texts that a token of the model ends in")
    return found
