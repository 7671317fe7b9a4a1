"""A circuit breaker: a model that keeps failing is not asked for a while, then once to see."""

import time
from collections.abc import Callable
from typing import Literal

State = Literal["closed", "open", "half_open"]


class Breaker:
    """Opens after ``failures`` in a row; after ``cooldown`` seconds one call may try again."""

    def __init__(
        self, failures: int, cooldown: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._allowed, self._cooldown, self._clock = failures, cooldown, clock
        self._failed = 0
        self._opened: float | None = None
        self._trial = False

    @property
    def state(self) -> State:
        """``half_open``: the next call, or one on its way, decides."""
        if self._opened is None:
            return "closed"
        is_due = self._clock() - self._opened >= self._cooldown
        return "half_open" if is_due or self._trial else "open"

    def may_call(self) -> bool:
        """Whether to ask the model now; a ``True`` while half open makes this call the trial."""
        if self._opened is None:
            return True
        if self._trial or self.state == "open":
            return False
        self._trial = True
        return True

    def succeeded(self) -> None:
        """The model answered."""
        self._failed, self._opened, self._trial = 0, None, False

    def failed(self) -> None:
        """The model did not answer, or not sensibly."""
        self._failed += 1
        if self._trial or self._failed >= self._allowed:
            self._opened, self._trial = self._clock(), False

    def cancelled(self) -> None:
        """Who asked went away; a trial says nothing."""
        self._trial = False
