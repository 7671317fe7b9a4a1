"""A circuit breaker: a model that keeps failing is not asked for a while, then once to see.

Knows no protocol: its owner says when a call was admitted, heard from its server, or failed.
"""

import asyncio
import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

State = Literal["closed", "open", "half_open"]


@dataclass(eq=False)
class Attempt:
    """One call that was let through."""

    # when its server was last heard of, by the breaker's clock
    heard: float


class Breaker:
    """Opens after ``failures`` in a row; after ``cooldown`` seconds one call, the trial, decides.

    A time-out counts only where the server has answered nobody else since: one slow stream says
    nothing of a server that answers others. What fails late, when the breaker has opened already,
    is no failure of the trial.
    """

    def __init__(
        self, failures: int, cooldown: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._allowed, self._cooldown, self._clock = failures, cooldown, clock
        self._failed = 0
        self._heard = -math.inf
        self._opened: float | None = None
        self._openings = 0
        self._trial: Attempt | None = None
        self._changed = asyncio.Event()

    @property
    def state(self) -> State:
        """``half_open``: the next call, or one on its way, decides."""
        if self._opened is None:
            return "closed"
        return "half_open" if self._trial is not None or self._due_in() <= 0 else "open"

    async def admit(self, *, wait: bool = False) -> Attempt | None:
        """A call, if the model is to be asked now; ``None``: leave it alone.

        Parameters
        ----------
        wait
            Wait for the next trial, or its outcome, instead of being turned away: for a caller that
            has nobody else to ask. It takes a cooldown and a trial at most.
        """
        openings = self._openings
        while self._opened is not None:
            due_in = self._due_in()
            if self._trial is None and due_in <= 0:
                self._trial = Attempt(self._clock())
                return self._trial
            if not wait or self._openings != openings:
                return None
            changed = self._changed
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(due_in if self._trial is None else None):
                    await changed.wait()
        return Attempt(self._clock())

    def answered(self, call: Attempt) -> None:
        """The model answered, in whole or with a piece of a stream."""
        self._heard = call.heard = self._clock()
        self._failed = 0
        if self._opened is not None:
            self._opened, self._trial = None, None
            self._tell()

    def failed(self, call: Attempt, *, timed_out: bool = False) -> None:
        """The model did not answer, or not sensibly."""
        is_trial = call is self._trial
        if self._opened is not None and not is_trial:
            return
        if not is_trial:
            if timed_out and self._heard > call.heard:
                return
            self._failed += 1
            if self._failed < self._allowed:
                return
        self._opened, self._trial = self._clock(), None
        self._openings += 1
        self._tell()

    def cancelled(self, call: Attempt) -> None:
        """Who asked went away; a trial says nothing."""
        if call is self._trial:
            self._trial = None
            self._tell()

    def _due_in(self) -> float:
        assert self._opened is not None
        return self._opened + self._cooldown - self._clock()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
