"""Calls at once that their owner outlives: all are over when it goes on, whatever happened."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from tokenlens.errors import BackendError, LimitError, SpecError

Result = TypeVar("Result")


async def end(tasks: Sequence["asyncio.Task[Any]"]) -> None:
    """Cancel tasks, once each, and wait until they are over.

    Whoever waits may be cancelled again meanwhile; a second cancellation of a task would break off
    the closing of its connection, so none is handed on, and the wait goes on.
    """
    for task in tasks:
        task.cancel()
    left = {task for task in tasks if not task.done()}
    cancelled = False
    while left:
        try:
            _, left = await asyncio.wait(left)
        except asyncio.CancelledError:
            cancelled = True
            left = {task for task in left if not task.done()}
    if cancelled:
        raise asyncio.CancelledError


async def together(
    calls: Sequence[Callable[[], Coroutine[Any, Any, Result]]],
) -> list[Result | BackendError]:
    """Results in the order of the calls, whichever ends first; a backend's failure is a result.

    Any other exception ends the rest, and is raised; so does a cancellation.
    """
    tasks = [asyncio.ensure_future(_guarded(call)) for call in calls]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION) if tasks else None
        for task in tasks:
            if task.done() and (error := task.exception()) is not None:
                raise error
        return [task.result() for task in tasks]
    finally:
        await end(tasks)


async def _guarded(call: Callable[[], Coroutine[Any, Any, Result]]) -> Result | BackendError:
    try:
        return await call()
    except BackendError as error:
        return error


def first_failure(results: Sequence[Any]) -> BackendError | None:
    """The first failure, if all have failed."""
    failures = [one for one in results if isinstance(one, BackendError)]
    return failures[0] if failures and len(failures) == len(results) else None


FAILURES = (BackendError, SpecError, NotImplementedError, LimitError)
"""What may go wrong with a probe without any harm to its request."""
