"""Traces on their way back: what a step reports, and the trace that the caller gets.

The worker adds a small record to every output that it hands to the engine; the front end keeps the
newest totals and, where the spec asked for them, the steps. Knows no tensors and no engine.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from tokenlens.spec import DecodingSpec
from tokenlens.trace import PHASE_NAMES, Trace, TraceStep
from tokenlens.trace.records import kept_prompt, never_opened
from tokenlens.trace.reports import TOTALS, RequestReport, trace_counts, tripped
from tokenlens.trace.steps import step_record


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
        self.counts: Mapping[str, int] = dict.fromkeys(TOTALS, 0)
        self.phase = 0
        self.steps: list[TraceStep] = []
        self.mode_changes = 0
        self._latent: bool | None = None

    def add(self, report: RequestReport | Sequence[Any]) -> dict[str, int]:
        """Take one report; returns what it added, by name."""
        report = RequestReport.of(report)
        grown: Counter[str] = Counter()
        for one in (*report.accepted, report):
            grown.update(self._add(RequestReport.of(one)))
        return dict(grown)

    def _add(self, report: RequestReport) -> dict[str, int]:
        self.phase = report.phase
        self.same_noise |= bool(report.same_noise)
        counts = report.counts
        grown = {name: count - self.counts.get(name, 0) for name, count in counts.items()}
        self.counts = counts
        grown["mode_changes"] = 0
        if grown["tokens"] > 0:
            latent = grown["latent_steps"] > 0
            grown["mode_changes"] = int(self._latent is not None and self._latent != latent)
            self._latent = latent
        self.mode_changes += grown["mode_changes"]
        if report.step is not None and len(self.steps) < self.spec.trace.max_steps:
            self.steps.append(step_record(report.step, self.spec.trace, scored=True))
        return grown

    @property
    def never_opened(self) -> bool:
        """Whether what was asked for needs thinking, and none was opened."""
        counts = trace_counts(self.counts, self.mode_changes)
        return never_opened(self.spec, counts, PHASE_NAMES[self.phase])

    def trace(self) -> Trace | None:
        """The trace so far, ``None`` where the spec says ``trace.level: off``."""
        if self.spec.trace.level == "off":
            return None
        counts = trace_counts(self.counts, self.mode_changes)
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
            never_opened=self.never_opened,
            tripped=tripped(self.counts),
        )
