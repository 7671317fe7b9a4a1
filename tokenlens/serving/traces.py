"""Traces on their way back: what a step reports, and the trace that the caller gets.

The worker adds a small record to every output that it hands to the engine; the front end keeps the
newest totals and, where the spec asked for them, the steps. Knows no tensors and no engine.
"""

from collections.abc import Sequence
from typing import Any

from tokenlens.spec import DecodingSpec
from tokenlens.trace import PHASE_NAMES, Trace, TraceCounts, TraceStep
from tokenlens.trace.records import kept_prompt
from tokenlens.trace.steps import step_record

COUNTS = tuple(TraceCounts.model_fields)
"""Order of the totals in a report; the phase follows them, then whether the noise is another's."""

COLUMNS = (
    *("position", "phase", "token", "latent", "forced", "valid", "entropy", "max_probability"),
    *("weights", "ids", "log_probability", "scores", "records"),
)
"""Order of a step's values in a report: columns of ``core.report.StepReport``."""


class RequestRecorder:
    """Collects the reports of one request in the front end."""

    def __init__(
        self,
        spec: DecodingSpec,
        engine: str,
        sample: int = 0,
        prompt_ids: Sequence[int] | None = None,
    ) -> None:
        self._prompt = prompt_ids if spec.trace.level == "full" else None
        self.spec, self.engine, self.sample = spec, engine, sample
        self.same_noise = False
        self.counts = [0] * len(COUNTS)
        self.phase = 0
        self.steps: list[TraceStep] = []
        self.switches = 0
        self._latent: bool | None = None

    def add(self, report: list[Any]) -> list[int]:
        """Take one report (totals, the worker's usage, perhaps a step); returns what was added."""
        counts, self.phase = report[0][: len(COUNTS)], report[0][len(COUNTS)]
        self.same_noise |= any(report[0][len(COUNTS) + 1 :])
        grown = [new - old for new, old in zip(counts, self.counts)]
        self.counts = counts
        if grown[0] > 0:
            latent = grown[2] > 0
            self.switches += self._latent is not None and self._latent != latent
            self._latent = latent
        if len(report) > 2 and len(self.steps) < self.spec.trace.max_steps:
            self.steps.append(
                step_record(dict(zip(COLUMNS, report[2])), self.spec.trace, scored=True)
            )
        return grown

    def trace(self) -> Trace | None:
        """The trace so far, ``None`` where the spec says ``trace.level: off``."""
        if self.spec.trace.level == "off":
            return None
        counts = TraceCounts(**dict(zip(COUNTS, self.counts)))
        full = self.spec.trace.level == "full"
        return Trace(
            engine=self.engine,
            spec=self.spec,
            sample=self.sample,
            same_noise=self.same_noise,
            prompt_ids=kept_prompt(self._prompt or (), self.spec.trace.level),
            final_phase=PHASE_NAMES[self.phase],
            counts=counts,
            steps=tuple(self.steps),
            dropped_steps=max(0, counts.tokens - len(self.steps)) if full else 0,
        )
