"""What becomes of an exception: it costs the request that it belongs to, never the engine.

Requests that have no spec, and those whose fault it is not, go on as if nothing had been. Knows no
engine.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import Tensor

from tokenlens.errors import MethodError

if TYPE_CHECKING:
    from tokenlens.core.snapshots import SuspendedRequest
    from tokenlens.serving.batch import Batch

logger = logging.getLogger(__name__)

FORGOTTEN = (
    "the history of this request's concept tokens and vectors did not fit when it lost its KV cache"
)
TAKEN_BACK = "the engine took back other tokens of this request than tokenlens can take back"
HELD = "the engine drafted tokens of a request that is fed mixtures, which it was told to hold back"
BROKEN = "an error in tokenlens, which the engine's log shows, ended this request and no other"
BROKEN_STEP = (
    "an error in tokenlens, which the engine's log shows, ended all requests with a spec that were"
    " in its step"
)
"""Why a request cannot go on."""


def reason_of(error: BaseException | None) -> str:
    """Why a request ends after an exception; the name of the method from outside, if it was one."""
    if isinstance(error, MethodError) and error.summary:
        return f"{error.summary}, which ended it and no other method's; the engine's log shows more"
    return BROKEN


@contextmanager
def contained(what: str) -> Iterator[None]:
    """Log an exception and go on: what only tells of a request may end nothing."""
    try:
        yield
    except Exception:
        logger.exception("tokenlens: %s", what)


def decide_apart(batch: "Batch", logits: Tensor) -> Tensor:
    """The logits of a step that raised for all requests together: whose fault it is, ends.

    Each request is alone in the core for one attempt, so that no other one's methods are called. A
    step changes no state, so that the others are what they were. Slow, and only ever done after an
    exception.
    """
    away: dict[str, SuspendedRequest] = {}
    for live in [live for live in batch.live.values() if live.slot >= 0]:
        with _blamed(batch, live.req_id):
            away[live.req_id] = batch.core.suspend(live.slot)
    for req_id in list(away):
        with _blamed(batch, req_id):
            batch.core.resume(batch.live[req_id].slot, away.pop(req_id))
            batch.core.step(logits, batch.slots)
            away[req_id] = batch.core.suspend(batch.live[req_id].slot)
    for req_id, suspended in away.items():
        with _blamed(batch, req_id):
            batch.core.resume(batch.live[req_id].slot, suspended)
    batch.leave_rows()
    while True:
        try:
            return batch.core.step(logits, batch.slots)
        except MethodError as error:
            # Raises with several requests, and with none alone: all that name the method end.
            if not batch.fail_method(error):
                break
        except Exception:
            logger.exception("a step fails with several requests, and with none alone")
            break
    batch.fail_rows()
    return logits


@contextmanager
def _blamed(batch: "Batch", req_id: str) -> Iterator[None]:
    try:
        yield
    except Exception:
        batch.fail(req_id)
