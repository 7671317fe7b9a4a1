"""What an engine's front end counts, on the collector that all engines share."""

from typing import Any
from weakref import WeakSet

from tokenlens.metrics import GAUGES, Grown, collector
from tokenlens.serving.traces import RequestRecorder

_OPEN: WeakSet[RequestRecorder] = WeakSet()
"""Requests of this process that have reported and have not ended."""


def count_refusal(engine: str) -> None:
    """Count a request that was not admitted."""
    collector(engine).count("refusals")


def observe(recorder: RequestRecorder, report: list[Any]) -> None:
    """Give a report to its request's recorder, and count what it added.

    A report's second part is how many slots and pages the worker had taken, in the order of
    ``GAUGES``.
    """
    _OPEN.add(recorder)
    before = recorder.switches
    tokens, _, latent, forced, invalid, cold_stops, _ = recorder.add(report)
    shared = collector(recorder.engine)
    for name, amount in zip(GAUGES, report[1]):
        shared.set(name, amount)
    switches = recorder.switches - before
    shared.add(Grown(tokens, latent, switches, forced, invalid, cold_stops))


def close(recorder: RequestRecorder | None) -> None:
    """A request ended, however it did; after the last one nothing is in use.

    No report says so: a worker reports with tokens.
    """
    if recorder is None:
        return
    _OPEN.discard(recorder)
    if not _OPEN:
        for name in GAUGES:
            collector(recorder.engine).set(name, 0)
