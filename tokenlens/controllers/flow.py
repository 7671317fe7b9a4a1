"""How a line goes from its thinking to its end, and the bases of methods that steer one line.

``Probing`` looks at an unfinished thought and may stop it; ``Injecting`` writes into it.
"""

from dataclasses import replace
from typing import Protocol

from tokenlens.controllers.desk import Span
from tokenlens.controllers.page import Page
from tokenlens.controllers.stops import ControllerStop


class ControllerMethod(Protocol):
    """Writes one request's text."""

    async def run(self, page: Page) -> None:
        """Write the line to its end; its ``why`` says what stopped it."""


async def finish(page: Page, why: str = "", facts: int = 0) -> None:
    """End the thinking if it is not over, and write the answer, once."""
    if page.desk.frame.think_end is None:
        if page.state != "eos" and not why:
            page.state = "full"
        page.why = page.why or why or page.state
        return
    if page.answer_at is None and not close(page, why):
        return
    page.why = page.why or why or "think_end"
    if page.state != "eos":
        await answer(page, facts)


def close(page: Page, why: str = "") -> bool:
    """End the thinking by force; whether there was room for that.

    An end of the text inside the thinking is no answer: it is taken back, and the answer follows.
    """
    page.why = page.why or why or ("eos" if page.state == "eos" else "budget")
    if page.state == "eos":
        drop_eos(page)
    text = page.desk.frame.closing_text
    if not text or not page.insert(text, "closing", "closing"):
        page.state = "full"
        return False
    page.close(len(page.atoms))
    return True


def goes_on(page: Page) -> bool:
    """Whether the line goes on, for methods that steer thinking and answer alike.

    Closes the thinking where its budget is used up.
    """
    if page.desk.frame.think_end is not None and page.answer_at is None:
        if page.state == "eos" or page.tokens_left() <= 0:
            return close(page) and page.tokens_left() > 0
        return True
    page.why = page.why or ("think_end" if page.desk.frame.think_end is not None else page.state)
    if page.state == "eos":
        return False
    if page.tokens_left() <= 0:
        page.state = "full"
        return False
    return True


def divided(page: Page, span: Span, texts: tuple[str, ...]) -> tuple[Span, Span]:
    """A span before the text that ended it, and from its tokens on."""
    if span.ids:
        for at in range(len(span.ids) - 1, -1, -1):
            if any(text in page.model.decode(span.ids[at:]) for text in texts):
                head = replace(span, ids=span.ids[:at], facts=span.facts[:at], finish="cut")
                return head, replace(span, ids=span.ids[at:], facts=span.facts[at:])
        return replace(span, finish="cut"), replace(span, ids=(), facts=())
    whole = "".join(text for text, _ in span.words)
    at = max((whole.rfind(text) for text in texts), default=-1)
    if at < 0:
        return replace(span, finish="cut"), replace(span, words=())
    tail = replace(span, words=((whole[at:], 1),))
    return replace(span, words=((whole[:at], max(0, span.tokens - 1)),), finish="cut"), tail


def drop_eos(page: Page) -> None:
    """Take the end of the text back."""
    vocabulary = page.model.vocabulary
    if vocabulary is not None and page.atoms and page.atoms[-1].token in vocabulary.eos_ids:
        page.atoms.pop()
    page.state = "thinking"


async def answer(page: Page, facts: int = 0) -> None:
    """Write what follows the thinking."""
    left = page.desk.frame.answer_tokens
    span = await page.write_on(left, kind="answer", facts=facts)
    if span.finish != "eos":
        page.state = "full"


async def plain(page: Page, facts: int = 0) -> Span:
    """Think and answer, as the model would alone."""
    span = Span()
    if page.is_thinking:
        span = await page.write_on(facts=facts)
    await finish(page, facts=facts)
    return span


class Probing:
    """Writes segments, and asks after each of them whether to go on."""

    async def run(self, page: Page) -> None:
        """Write the line."""
        why = ""
        while page.is_thinking and page.tokens_left() > 0:
            span = await page.write(self.segment(page), stop=self.stop(page))
            page.take(span)
            if not page.is_thinking or (span.finish == "length" and page.tokens_left() <= 0):
                break
            if found := await self.leave(page, span):
                why = found
                break
        await finish(page, why)

    def segment(self, page: Page) -> int | None:
        """Tokens until the next look; ``None``: until the stop."""
        return None

    def stop(self, page: Page) -> ControllerStop:
        """What a segment ends with."""
        return ControllerStop()

    async def leave(self, page: Page, span: Span) -> str:
        """Why to stop here; empty to go on."""
        raise NotImplementedError


class Injecting:
    """Writes segments, and puts text in behind or inside them."""

    async def run(self, page: Page) -> None:
        """Write the line."""
        page.outlet.held = True
        while page.is_thinking and page.tokens_left() > 0:
            start = len(page.atoms)
            span = await page.write(self.segment(page))
            page.take(span)
            if not page.is_thinking or page.tokens_left() <= 0:
                break
            self.inject(page, start)
        page.outlet.held = False
        await finish(page)

    def segment(self, page: Page) -> int:
        """Tokens until the next injection."""
        raise NotImplementedError

    def inject(self, page: Page, start: int) -> None:
        """Put text in; the segment begins at an atom."""
        raise NotImplementedError
