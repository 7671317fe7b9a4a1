"""What an engine's front end counts, on the collector that all engines share."""

from typing import Any

from tokenlens.metrics import GAUGES, Grown, collector
from tokenlens.serving.traces import Recorder


def count_refusal(engine: str) -> None:
    """Count a request that was not admitted."""
    collector(engine).count("refusals")


def observe(recorder: Recorder, report: list[Any]) -> None:
    """Give a report to its request's recorder, and count what it added.

    A report's second part is how many slots and pages the worker had taken, in the order of
    ``GAUGES``.
    """
    before = recorder.switches
    tokens, _, latent, forced, invalid, cold_stops, _ = recorder.add(report)
    shared = collector(recorder.engine)
    for name, amount in zip(GAUGES, report[1]):
        shared.set(name, amount)
    switches = recorder.switches - before
    shared.add(Grown(tokens, latent, switches, forced, invalid, cold_stops))
