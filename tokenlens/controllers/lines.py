"""Several whole lines of one request at once, and the choice between them."""

from collections.abc import Awaitable, Callable, Sequence

from tokenlens.controllers.children import first_failure, together
from tokenlens.controllers.flow import plain
from tokenlens.controllers.page import Page
from tokenlens.controllers.votes import equality, read, vote
from tokenlens.errors import BackendError


async def several(
    lines: Sequence[Page], write: Callable[[Page], Awaitable[float | None]]
) -> list[float | None]:
    """Write lines at once; each one's own value. One that fails is a line without an answer.

    Raises
    ------
    BackendError
        All have failed.
    """

    async def one(line: Page) -> float | None:
        try:
            return await write(line)
        except BackendError as error:
            line.mark.error = str(error)[:200]
            raise
        finally:
            await line.over()

    # The default argument binds each line to its own call.
    calls = [lambda line=line: one(line) for line in lines]
    found = await together(calls)
    if (failure := first_failure(found)) is not None:
        raise failure
    return [
        None if value is None or isinstance(value, BackendError) else steady(value)
        for value in found
    ]


async def whole(line: Page, facts: int = 0) -> None:
    """Write a line as the model would alone; it has no value of its own."""
    await plain(line, facts)


def steady(value: float) -> float:
    """A measure of a line without the last digits, which hang on the batch that it was in.

    Two lines that are equal then have one value, and which of them is chosen hangs on their order.
    """
    return round(value, 6)


def answers_of(page: Page, lines: Sequence[Page]) -> list[str | None]:
    """What each line answers: nothing where it ends inside the thinking, or has failed."""
    where = page.desk.frame.read_answer
    return [None if line.mark.error else read(line.answer, where) for line in lines]


def elect(
    page: Page, lines: Sequence[Page], weights: Sequence[float] | None = None, why: str = "vote"
) -> None:
    """Have the page become the first line of the heaviest answer; the first line without one."""
    answers = answers_of(page, lines)
    chosen, totals = vote(answers, weights, equality(page.desk.frame.equality))
    page.desk.notes["vote"] = totals
    if chosen is None:
        # Nobody has an answer: a line that has text, though.
        chosen = next((at for at, line in enumerate(lines) if not line.mark.error), 0)
        why = "no answer"
    for at, line in enumerate(lines):
        line.mark.end = line.mark.end or line.state
        line.mark.note = f"answer {answers[at]!r}"[:100] if answers[at] else "no answer"
        line.mark.value = None if weights is None else weights[at]
    page.adopt(lines[chosen])
    page.why = why
