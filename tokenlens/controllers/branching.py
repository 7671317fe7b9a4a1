"""A pool of lines under a virtual clock: decisions as in lockstep, streams as they come.

A line may run ahead of the clock; what it wrote stays valid, because nothing is decided for a step
before every live line has reached it. So the order in which tokens arrive decides nothing.
"""

import asyncio
from contextlib import aclosing
from dataclasses import dataclass, field

from tokenlens.controllers.children import end
from tokenlens.controllers.desk import Span
from tokenlens.controllers.page import Page
from tokenlens.controllers.stops import ControllerStop
from tokenlens.routing.facts import Fact


@dataclass(eq=False)
class BranchRow:
    """One line while it runs.

    Attributes
    ----------
    ids, facts
        Of every step since the root's first one; a branch's come from its parent up to its birth.
    parent, birth
        The row that it left, and the step of its own first token.
    """

    page: Page
    number: int
    ids: list[int] = field(default_factory=list)
    facts: list[Fact | None] = field(default_factory=list)
    parent: "BranchRow | None" = None
    birth: int = 0
    log_prob: float = 0.0
    ended: str | None = None
    error: Exception | None = None
    task: "asyncio.Task[None] | None" = None
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def has(self, step: int) -> bool:
        """Whether its token of a step is known, or never comes."""
        return len(self.ids) > step or self.ended is not None

    def is_over(self, step: int) -> bool:
        """Whether it had ended before a step."""
        return self.ended is not None and len(self.ids) <= step


class Pool:
    """Rows of one root."""

    def __init__(self, top: int) -> None:
        self.rows: list[BranchRow] = []
        self.pruned: list[BranchRow] = []
        self._top = top
        self._born = 0

    def root(self, page: Page, max_tokens: int) -> BranchRow:
        """Begin."""
        return self._start(BranchRow(page, 0), max_tokens)

    def branch(self, parent: BranchRow, step: int, token: int, max_tokens: int) -> BranchRow:
        """A new row that is its parent up to a step, and goes on with another token there."""
        self._born += 1
        page = parent.page.branch("row", self._born, kind="fork", at=0)
        # A branch's noise hangs on the row and not on its parent's calls.
        page.sampling = parent.page.sampling
        row = BranchRow(page, self._born, parent.ids[:step], parent.facts[:step], parent, step)
        row.ids.append(token)
        row.facts.append(None)
        page.mark.at = step
        # The model's own candidate, though no call wrote it.
        page.mark.tokens += 1
        page.desk.counts["large"].tokens += 1
        if token in (page.model.vocabulary.eos_ids if page.model.vocabulary else ()):
            row.ended = "eos"
            self.rows.append(row)
            return row
        return self._start(row, max_tokens)

    def _start(self, row: BranchRow, max_tokens: int) -> BranchRow:
        self.rows.append(row)
        if max_tokens > 0:
            row.task = asyncio.ensure_future(self._pump(row, max_tokens))
        else:
            row.ended = "length"
        return row

    async def _pump(self, row: BranchRow, max_tokens: int) -> None:
        page = row.page
        prompt = page.prompts["large"]
        assert not isinstance(prompt, str)
        span = Span()
        try:
            calls = page.desk.stream(
                (*prompt, *row.ids), page.mark, session=page.session, max_tokens=max_tokens,
                sampling=page.sampling, stop=ControllerStop(), facts=self._top,
                fork_of=row.parent.page.session if row.parent is not None else None,
            )  # fmt: skip
            async with aclosing(calls) as spans:
                async for span in spans:
                    row.ids += span.ids
                    row.facts += span.facts
                    row.news.set()
            row.ended = span.finish or "length"
        except Exception as error:
            row.error, row.ended = error, "failed"
            page.mark.error = str(error)[:200]
        finally:
            row.ended = row.ended or "cancelled"
            row.news.set()

    async def reach(self, step: int) -> None:
        """Wait until every live row has reached a step."""
        for row in list(self.rows):
            while not row.has(step):
                row.news.clear()
                if not row.has(step):
                    await row.news.wait()

    async def prune(self, rows: list[BranchRow], why: str) -> None:
        """End rows, and throw away what they wrote."""
        for row in rows:
            row.page.mark.end = why
        self.pruned += rows
        gone = set(map(id, rows))
        self.rows = [row for row in self.rows if id(row) not in gone]
        await end([row.task for row in rows if row.task is not None])
        for row in rows:
            await row.page.over()

    def descendants(self, row: BranchRow) -> list[BranchRow]:
        """A row and all that left it, or one of those."""
        found = [row]
        for other in self.rows:
            if any(other.parent is one for one in found):
                found.append(other)
        return found

    async def close(self) -> None:
        """End all that still runs."""
        await end([row.task for row in (*self.rows, *self.pruned) if row.task is not None])
