"""What happened at each step, kept on the device while decoding and read once it is over."""

from collections import Counter
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from tokenlens.core.columns import (
    PHASE,
    SWITCH,
    Field,
)
from tokenlens.core.pipeline import Core
from tokenlens.core.report import StepReport
from tokenlens.core.request import Request
from tokenlens.spec import DecodingSpec
from tokenlens.spec.needs import Need
from tokenlens.trace import PHASE_NAMES, Trace, TraceCounts, TraceStep
from tokenlens.trace.records import kept_prompt, never_opened
from tokenlens.trace.reports import trace_counts, tripped
from tokenlens.trace.steps import step_record

CHUNK = 256
"""Steps that are gathered into one tensor each: many small tensors waste device memory."""


class Recorder:
    """Records the committed steps of a fixed set of requests, row ``i`` in slot ``i``.

    Parameters
    ----------
    engine
        The engine's name, for the traces.
    prompts
        The requests' tokens, where they are known: full traces have them, and equal ones with an
        equal seed are marked.
    """

    def __init__(
        self,
        core: Core,
        requests: Sequence[Request],
        engine: str,
        prompts: Sequence[Sequence[int]] = (),
    ) -> None:
        self._core, self._requests, self._engine = core, list(requests), engine
        full = [r.spec.trace for r in requests if r.spec.trace.level == "full"]
        self._max_steps = max((config.max_steps for config in full), default=0)
        self._max_entries = max((config.most_entries(latent=True) for config in full), default=0)
        self._prompts = [tuple(ids) for ids in prompts] or [()] * len(self._requests)
        self._same_noise = _repeats([request.noise_key for request in requests], prompts)
        self._steps: list[StepReport] = []
        self._chunks: list[StepReport] = []
        self._seen = 0
        # Of every step, [num_rows] bool: latent, advanced; and [2, steps, num_rows] of many
        self._modes: list[tuple[Tensor, Tensor]] = []
        self._mode_chunks: list[Tensor] = []

    def append(self, step: StepReport | None) -> None:
        """Keep a step if any request wants it; no host read."""
        if step is None:
            return
        self._seen += 1
        self._modes.append((step.latent, step.advanced))
        if len(self._modes) == CHUNK:
            self._flush_modes()
        if self._seen > self._max_steps:
            return
        entries = slice(0, self._max_entries)
        kept = step._replace(
            weights=step.weights[:, entries].clone(),
            ids=step.ids[:, entries].clone(),
            scores=step.scores[:, entries].clone(),
        )
        self._steps.append(kept)
        if len(self._steps) == CHUNK:
            self._flush()

    def _flush(self) -> None:
        if self._steps:
            self._chunks.append(StepReport(*(torch.stack(column) for column in zip(*self._steps))))
            self._steps = []

    def _flush_modes(self) -> None:
        if self._modes:
            columns = [torch.stack(column) for column in zip(*self._modes)]
            self._mode_chunks.append(torch.stack(columns))
            self._modes = []

    def traces(self) -> list[Trace | None]:
        """A trace for each request; ``None`` where its spec says ``trace.level: off``."""
        self._flush()
        self._flush_modes()
        changes = _mode_changes(self._mode_chunks, len(self._requests))
        host = [StepReport(*(column.cpu() for column in chunk)) for chunk in self._chunks]
        return [
            self._trace(row, request, host, changes[row])
            for row, request in enumerate(self._requests)
        ]

    def _trace(
        self, row: int, request: Request, host: Sequence[StepReport], mode_changes: int
    ) -> Trace | None:
        config = request.spec.trace
        if config.level == "off":
            return None
        counts = self._counts(row, mode_changes)
        steps: list[TraceStep] = []
        if config.level == "full":
            for chunk in host:
                steps.extend(_steps(chunk, row, request, self._core.records))
        steps = steps[: config.max_steps]
        return Trace(
            engine=self._engine,
            spec=request.spec,
            sample=request.index,
            same_noise=self._same_noise[row],
            prompt_ids=kept_prompt(self._prompts[row], config.level),
            final_phase=PHASE_NAMES[self._count(PHASE, row)],
            counts=counts,
            steps=tuple(steps),
            dropped_steps=counts.tokens - len(steps) if config.level == "full" else 0,
            never_opened=self._never_opened(row, request.spec, counts),
            tripped=tripped(self._totals(row)),
        )

    def never_opened(self) -> list[DecodingSpec]:
        """The specs of requests that asked for something in thinking, and had none."""
        found = []
        for row, request in enumerate(self._requests):
            if self._never_opened(row, request.spec, self._counts(row)):
                found.append(request.spec)
        return found

    def _never_opened(self, row: int, spec: DecodingSpec, counts: TraceCounts) -> bool:
        return never_opened(spec, counts, PHASE_NAMES[self._count(PHASE, row)])

    def _counts(self, row: int, mode_changes: int = 0) -> TraceCounts:
        return trace_counts(self._totals(row), mode_changes)

    def _totals(self, row: int) -> dict[str, int]:
        return {name: self._count(column, row) for name, column in self._core.totals.items()}

    def _count(self, column: Field, row: int) -> int:
        return int(self._core.table.column(column)[row])


def _steps(chunk: StepReport, row: int, request: Request, names: Sequence[str]) -> list[TraceStep]:
    # A column of `chunk` is [steps, rows] or [steps, rows, entries], on the host.
    columns = {name: column[:, row].tolist() for name, column in chunk._asdict().items()}
    advanced = columns.pop("advanced")
    columns["records"] = [edits_and_switch(amounts, names) for amounts in columns["records"]]
    scored = Need.SCORES in request.needs
    return [
        step_record(
            {name: column[index] for name, column in columns.items()},
            request.spec.trace,
            scored,
        )
        for index, moved in enumerate(advanced)
        if moved
    ]


def _mode_changes(chunks: Sequence[Tensor], num_rows: int) -> list[int]:
    """How often each row was fed in another way, mixture or token, than a step before.

    Parameters
    ----------
    chunks
        ``[2, steps, num_rows]`` bool each: latent, advanced.
    """
    if not chunks:
        return [0] * num_rows
    latent, advanced = torch.cat(list(chunks), dim=1).cpu().numpy()
    modes = [latent[advanced[:, row], row] for row in range(num_rows)]
    return [int((mode[1:] != mode[:-1]).sum()) for mode in modes]


def _repeats(keys: Sequence[int | None], prompts: Sequence[Sequence[int]]) -> list[bool]:
    """Whether the noise of each request is another's as well: same key, same prompt."""
    if not any(prompts):
        return [False] * len(keys)
    noises = [(key, tuple(prompt)) for key, prompt in zip(keys, prompts, strict=True)]
    seen = Counter(noises)
    return [key is not None and seen[key, prompt] > 1 for key, prompt in noises]


def edits_and_switch(
    amounts: Sequence[float], names: Sequence[str]
) -> tuple[dict[str, float] | None, Literal["to_latent", "to_discrete"] | None]:
    """A step's logit edits and its switch, ``None`` where there is none.

    Parameters
    ----------
    amounts
        What methods recorded of one row, in the order of ``names``.
    names
        :attr:`tokenlens.core.Core.records`.
    """
    edits = {name: amount for name, amount in zip(names, amounts) if amount}
    turn = edits.pop(SWITCH, 0)
    return edits or None, "to_latent" if turn > 0 else "to_discrete" if turn < 0 else None
