"""The figures of one trace, added up a step at a time: what has been added need not be kept."""

from collections.abc import Iterable
from typing import NamedTuple

from tokenlens.spec import DecodingSpec
from tokenlens.trace.finish import Finish, finish_of
from tokenlens.trace.records import PhaseName, Trace, TraceCounts, TraceStep


class Summary(NamedTuple):
    """Figures of one trace; shares and means are over the steps that were kept.

    ``finish`` is how its thinking went (:data:`tokenlens.trace.finish.Finish`).
    """

    tokens: int
    thinking_tokens: int
    latent_steps: int
    forced_steps: int
    cold_stops: int
    invalid_steps: int
    gate_switches: int
    mode_changes: int
    mean_entropy: float
    mean_top_weight: float
    steps_kept: int
    dropped_steps: int
    finish: Finish


class Tally:
    """Sums over the steps of a trace."""

    def __init__(self) -> None:
        self.steps = self.thinking = self.latent = self.forced = self.invalid = 0
        self._switches = self._changes = self._weights = 0
        self._entropy = self._weight = 0.0
        self._mode: bool | None = None
        self.phase: PhaseName = "prompt"

    def add(self, step: TraceStep) -> None:
        """Count a step."""
        self.steps += 1
        self._entropy += step.entropy
        self.forced += step.forced
        self.invalid += not step.valid
        if step.latent:
            self.latent += 1
            if step.entries:
                self._weights += 1
                self._weight += step.entries[0][1]
        if step.phase == "thinking":
            self.thinking += 1
        self._switches += step.switch == "to_discrete"
        self._changes += self._mode is not None and self._mode != step.latent
        self._mode = step.latent
        self.phase = step.phase

    def counts(self) -> TraceCounts:
        """Totals of the steps so far; ends that Cold Stop forced do not show in steps."""
        return TraceCounts(
            tokens=self.steps,
            thinking_tokens=self.thinking,
            latent_steps=self.latent,
            forced_steps=self.forced,
            invalid_steps=self.invalid,
            gate_switches=self._switches,
            mode_changes=self._changes,
        )

    def summary(
        self, spec: DecodingSpec, counts: TraceCounts, final_phase: PhaseName, dropped_steps: int
    ) -> Summary:
        """The figures, with the totals that the trace's end gives."""
        return Summary(
            tokens=counts.tokens,
            thinking_tokens=counts.thinking_tokens,
            latent_steps=counts.latent_steps,
            forced_steps=counts.forced_steps,
            cold_stops=counts.cold_stops,
            invalid_steps=counts.invalid_steps,
            gate_switches=counts.gate_switches,
            mode_changes=counts.mode_changes or self._changes,
            mean_entropy=self._entropy / self.steps if self.steps else 0.0,
            mean_top_weight=self._weight / self._weights if self._weights else 0.0,
            steps_kept=self.steps,
            dropped_steps=dropped_steps,
            finish=finish_of(spec, counts, final_phase),
        )


def counts_of(steps: Iterable[TraceStep]) -> TraceCounts:
    """Totals of the steps that are there."""
    tally = Tally()
    for step in steps:
        tally.add(step)
    return tally.counts()


def summarize(trace: Trace) -> Summary:
    """The figures of a trace."""
    tally = Tally()
    for step in trace.steps:
        tally.add(step)
    return tally.summary(trace.spec, trace.counts, trace.final_phase, trace.dropped_steps)
