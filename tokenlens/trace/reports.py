"""What one step tells of one request, from the worker to the front end's recorder.

Plain data, so that it crosses processes: an engine may turn it into a list on its way, and
:meth:`RequestReport.of` reads it back. Knows no tensors and no engine.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tokenlens.trace.records import TRIP_CONDITIONS, TraceCounts, Tripped

TOTALS = ("tokens", "thinking_tokens", "latent_steps", "forced_steps", "invalid_steps")
"""What is counted of every request; methods declare what else is (``Method.counters``)."""


TRIP = ("trip_position", "trip_condition", "trip_value")
"""What a tripwire tells in the place of counts: where, the number of its condition, its value."""
TRIP_SCALE = 10**9
"""What a value is multiplied by that travels as a count."""


class RequestReport(NamedTuple):
    """A request after one more committed token, or several, where the engine drafts."""

    # by name: TOTALS, and what the methods count
    counts: Mapping[str, int]
    # the core's number of the phase that it is in
    phase: int
    # another live request has the same prompt and the same noise
    same_noise: bool = False
    # slots and pages in use, by the name of their gauge
    usage: Mapping[str, int] = {}
    # the step itself, by the columns of a record, where the spec asked for it
    step: Mapping[str, Any] | None = None
    # the reports of drafts that were accepted in the same step of the engine, before it
    accepted: "Sequence[RequestReport]" = ()

    @classmethod
    def of(cls, data: "RequestReport | Sequence[Any]") -> "RequestReport":
        """A report as it came."""
        return cls(*data)

    def of_first(self, tokens: int) -> "RequestReport":
        """What it is where the engine keeps only the first tokens of the step, one at least."""
        if tokens > len(self.accepted):
            return self
        last = RequestReport.of(self.accepted[tokens - 1])
        return last._replace(accepted=self.accepted[: tokens - 1])


def trace_counts(counts: Mapping[str, int], mode_changes: int) -> TraceCounts:
    """A trace's totals: those that it has a field for, and the others by name."""
    known = {name: count for name, count in counts.items() if name in TraceCounts.model_fields}
    others = {name: n for name, n in counts.items() if name not in known and name not in TRIP}
    return TraceCounts(**known, mode_changes=mode_changes, others=others)


def tripped(counts: Mapping[str, int]) -> Tripped | None:
    """What a tripwire has told, if it ended the request."""
    position, condition, value = (counts.get(name, 0) for name in TRIP)
    if not condition:
        return None
    name = TRIP_CONDITIONS[condition - 1]
    return Tripped(position=position, condition=name, value=value / TRIP_SCALE)
