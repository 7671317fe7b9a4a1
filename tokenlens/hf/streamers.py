"""A streamer that is called between the last criterion and the next forward pass.

Newer versions of transformers hand tokens to it there, and whatever it raises would leave the model
as it is at that moment. So what a run needs on the model waits until it has returned.
"""

import sys
from collections.abc import Callable
from typing import Any

from tokenlens.hf.calls import variables

LOOP, CHECK = 4, "stop_check"
"""Frames from here to the decoding loop, through criterion and list; its variable."""


class Followed:
    """A streamer, and what is done, once, when it has taken a step's tokens."""

    def __init__(self, streamer: Any) -> None:
        self._streamer = streamer
        self.then: Callable[[], None] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._streamer, name)

    def put(self, value: Any) -> None:
        """Hand tokens on."""
        self._streamer.put(value)
        then, self.then = self.then, None
        if then is not None:
            then()


def follow(then: Callable[[], None]) -> bool:
    """Have something done after the streamer of the loop that called our criterion.

    Returns
    -------
    bool
        Whether this loop calls a streamer after its criteria, at once, and can be followed.
    """
    # Not a look that keeps them: the step's logits are among them.
    check: Any = variables(sys._getframe(LOOP)).get(CHECK)
    # A check that is deferred streams a step late.
    if type(check).__name__ != "StopCheck" or getattr(check, "streamer", None) is None:
        return False
    if not isinstance(check.streamer, Followed):
        check.streamer = Followed(check.streamer)
    check.streamer.then = then
    return True
