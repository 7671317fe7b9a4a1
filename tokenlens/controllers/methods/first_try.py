"""First Try Matters: stop at the first answers that the thinking gives (arXiv 2510.08308).

The authors' detector of candidate answers and their classifier of questions are fine-tuned models
that are not to be had; a pattern, a second model or the caller's functions take their places.
"""

import math
import re
from typing import Literal

from pydantic import Field

from tokenlens.controllers.desk import Span
from tokenlens.controllers.flow import Probing
from tokenlens.controllers.page import Page, verdict
from tokenlens.controllers.settings import PolicyBase
from tokenlens.controllers.stops import ControllerStop
from tokenlens.controllers.votes import PHRASE, boxed
from tokenlens.routing.signals import TOP

DETECT = "Does this line state a candidate answer to the question? Answer yes or no.\n\n"
CLASSIFY = "Does this question need long reasoning? Answer yes or no.\n\n"


class FirstTry(PolicyBase):
    """Stops with the line in which the n-th candidate answer stands.

    ``detector``: ``pattern`` (a box, "answer is", or ``pattern``); ``second``: a second model is
    asked for yes or no; ``caller``: the scorer ``is_answer``. ``classify`` says whether a question
    is easy: ``no`` takes ``hard`` for all.
    """

    policy: Literal["first_try"] = "first_try"
    easy: int = Field(1, ge=1, le=10_000, description="candidates until the stop")
    hard: int = Field(3, ge=1, le=10_000, description="candidates until the stop")
    detector: Literal["pattern", "second", "caller"] = "pattern"
    pattern: str | None = Field(None, min_length=1, max_length=64, description="a text in a line")
    classify: Literal["no", "second", "caller"] = "no"
    detect_text: str = Field(DETECT, min_length=1, max_length=1000)
    classify_text: str = Field(CLASSIFY, min_length=1, max_length=1000)

    def second(self) -> str | None:
        """Where a second model is asked."""
        return "it answers yes or no" if "second" in (self.detector, self.classify) else None

    def scorers(self) -> tuple[str, ...]:
        """Where the caller is asked."""
        asked = {"is_answer": self.detector, "is_hard": self.classify}
        return tuple(name for name, by in asked.items() if by == "caller")


class Candidates(Probing):
    """One request."""

    def __init__(self, config: FirstTry) -> None:
        self._config = config
        self._found = 0
        self._most: int | None = None
        self._line = 0

    def stop(self, page: Page) -> ControllerStop:
        """A line."""
        return ControllerStop(texts=("\n",))

    async def leave(self, page: Page, span: Span) -> str:
        """Whether enough candidates have been seen."""
        if span.finish != "stop":
            return ""
        line, self._line = page.text_from(self._line), len(page.atoms)
        if self._most is None:
            self._most = await self._limit(page)
        if not await self._is_candidate(page, line):
            return ""
        self._found += 1
        return "candidate" if self._found >= self._most else ""

    async def _limit(self, page: Page) -> int:
        config = self._config
        if config.classify == "no":
            return config.hard
        question = question_of(page)
        if config.classify == "caller":
            hard = bool(page.desk.notes["scorers"]["is_hard"](question))
        else:
            hard = await yes(page, config.classify_text + question) is not False
        return config.hard if hard else config.easy

    async def _is_candidate(self, page: Page, line: str) -> bool:
        config = self._config
        if config.detector == "caller":
            return bool(page.desk.notes["scorers"]["is_answer"](line))
        if config.detector == "second":
            return await yes(page, config.detect_text + line) is True
        if config.pattern is not None and config.pattern in line:
            return True
        return boxed(line) is not None or PHRASE.search(line) is not None


def question_of(page: Page) -> str:
    """The prompt as text."""
    prompt = page.prompts["large"]
    return prompt if isinstance(prompt, str) else page.model.decode(prompt)


YES, NO = re.compile(r"\W*yes\b", re.IGNORECASE), re.compile(r"\W*no\b", re.IGNORECASE)


async def yes(page: Page, text: str) -> bool | None:
    """A second model's verdict; ``None`` where it failed or said neither.

    By ids, the probabilities of all tokens that say yes, against those that say no; else its text.
    """
    model = page.desk.models["small"]
    by_ids = model.vocabulary is not None
    span = await verdict(page, text, max_tokens=1 if by_ids else 4, facts=TOP if by_ids else 0)
    if span is None:
        return None
    found: bool | None = None
    if span.facts and model.vocabulary is not None:
        weights = [
            sum(
                math.exp(value) for token, value in span.facts[0].top
                if pattern.fullmatch(model.vocabulary.piece(token).strip())
            )
            for pattern in (YES, NO)
        ]  # fmt: skip
        found = None if weights[0] == weights[1] else weights[0] > weights[1]
    else:
        said = page.desk.text(span, "small")
        found = True if YES.match(said) else False if NO.match(said) else None
    if span.mark is not None:
        span.mark.note = "neither yes nor no" if found is None else "yes" if found else "no"
    return found
