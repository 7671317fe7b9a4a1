"""What an engine's front end counts, on the collector that all engines share."""

import logging
from collections.abc import Sequence
from typing import Any
from weakref import WeakSet

from tokenlens.metrics import GAUGES, Grown, collector
from tokenlens.serving.traces import RequestRecorder
from tokenlens.trace.records import warning_of
from tokenlens.trace.reports import RequestReport

logger = logging.getLogger(__name__)
# Also where an engine logs errors alone, as SGLang does without a server.
logger.setLevel(logging.WARNING)

_OPEN: WeakSet[RequestRecorder] = WeakSet()
"""Requests of this process that have reported and have not ended."""

_WARNED: set[str] = set()
"""Engines whose model has been told of once."""


def begin(engine: str) -> None:
    """A front end starts, of a model of its own: what is said once for each is said again."""
    _WARNED.discard(engine)
    _idle(engine)


def count_refusal(engine: str) -> None:
    """Count a request that was not admitted."""
    collector(engine).count("refusals")


def observe(recorder: RequestRecorder, report: RequestReport | Sequence[Any]) -> None:
    """Give a report to its request's recorder, and count what it added.

    Parameters
    ----------
    report
        As it came: an engine may have made a list of it.
    """
    _OPEN.add(recorder)
    report = RequestReport.of(report)
    grown = recorder.add(report)
    shared = collector(recorder.engine)
    for name in GAUGES:
        shared.set(name, report.usage.get(name, 0))
    shared.add(Grown.of(grown))


def close(recorder: RequestRecorder | None) -> None:
    """A request ended, however it did; after the last one nothing is in use.

    No report says so: a worker reports with tokens.
    """
    if recorder is None:
        return
    if recorder in _OPEN and recorder.never_opened:
        collector(recorder.engine).count("never_opened")
        if recorder.engine not in _WARNED:
            _WARNED.add(recorder.engine)
            logger.warning("tokenlens: %s", warning_of(recorder.spec))
    _OPEN.discard(recorder)
    _idle(recorder.engine)


def _idle(engine: str) -> None:
    """Where no request is open nothing is in use; gauges are there from the start on."""
    if not _OPEN:
        for name in GAUGES:
            collector(engine).set(name, 0)
