"""What a committed step tells the outside: totals always, the step itself where it was asked for.

The columns are copied to the host without waiting; the adapter, which hands the
step's tokens on, waits for both. Knows no requests' states, only their table's columns.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tokenlens.core.columns import Phase
from tokenlens.core.drafts import DraftReport
from tokenlens.core.recorder import edits_and_switch
from tokenlens.core.report import StepReport
from tokenlens.serving.batch import Batch, LiveRequest
from tokenlens.serving.faults import BROKEN_STEP, logger
from tokenlens.spec.needs import Need
from tokenlens.trace.reports import RequestReport


class PendingReport:
    """The reports of one step, on their way to the host.

    Parameters
    ----------
    rows
        Rows that report, with their requests.
    max_steps
        The operator's bound on the steps of a full trace.
    """

    def __init__(
        self,
        batch: Batch,
        step: StepReport | DraftReport,
        rows: Sequence[tuple[int, LiveRequest]],
        max_steps: int,
    ) -> None:
        self._batch, self._max_steps = batch, max_steps
        self._rows = [(row, live, live.rewinds) for row, live in rows]
        core = batch.core
        self._usage = {
            "slots_in_use": batch.slots_in_use,
            "history_pages_in_use": batch.store.pages_in_use,
        }
        # Of each row the newest token, and before it the drafts that were accepted.
        self._counts = [_to_host(batch.totals(), fresh=True)]
        self._last: Tensor | None = None
        steps = [step] if isinstance(step, StepReport) else [*step.drafts, step.newest]
        if isinstance(step, DraftReport):
            self._last = _to_host(step.last)
            before = [_to_host(batch.counts_of(state), fresh=True) for state in step.states]
            self._counts = [*before, *self._counts]
        full = [live for _, live in rows if live.request.spec.trace.level == "full"]
        configs = [live.request.spec.trace for live in full]
        self._entries = max((one.most_entries(latent=True) for one in configs), default=0)
        self._steps = [self._columns(one) for one in steps] if full else []
        self._ready: Any = None
        if core.device.type == "cuda":
            self._ready = torch.cuda.Event()
            self._ready.record()

    def _columns(self, step: StepReport) -> dict[str, Tensor]:
        """A step's columns, on their way to the host."""
        entries = slice(0, self._entries)
        columns = step._replace(
            weights=step.weights[:, entries],
            ids=step.ids[:, entries],
            scores=step.scores[:, entries],
        )._asdict()
        if self._last is None:
            # Which rows advanced is known on the host.
            del columns["advanced"]
        return {name: _to_host(column) for name, column in columns.items()}

    def result(self, failed: dict[str, str]) -> dict[str, RequestReport]:
        """Reports by request, of plain data; waits for the copies.

        Parameters
        ----------
        failed
            Takes up the requests whose report cannot be read, with the reason.
        """
        try:
            return self._result()
        except Exception:
            logger.exception("the reports of a step cannot be read")
            failed.update({live.req_id: BROKEN_STEP for _, live, _ in self._rows})
            return {}

    def _result(self) -> dict[str, RequestReport]:
        if self._ready is not None:
            self._ready.synchronize()
        counts = [one.tolist() for one in self._counts]
        steps = [{name: c.tolist() for name, c in one.items()} for one in self._steps]
        last = None if self._last is None else self._last.tolist()
        found = {}
        for row, live, rewinds in self._rows:
            offsets = [*range(0 if last is None else last[row]), -1]
            told = [
                self._report(counts[at][row], steps[at] if steps else None, row, live)
                for at in offsets
            ]
            *accepted, newest = told
            number = newest.counts["tokens"]
            self._batch.saw(live.req_id, number, newest.phase == Phase.ANSWER, rewinds)
            found[live.req_id] = newest._replace(accepted=accepted)
        return found

    def _report(
        self,
        counts: Sequence[int],
        columns: dict[str, list[Any]] | None,
        row: int,
        live: LiveRequest,
    ) -> RequestReport:
        """What is told of one token of a row."""
        *totals, phase = counts
        named = dict(zip(self._batch.counted, totals, strict=True))
        report = RequestReport(named, phase, live.same_noise, self._usage)
        if columns is None or not self._wants_step(live, named["tokens"]):
            return report
        values = {name: column[row] for name, column in columns.items()}
        if not values.pop("advanced", True):
            return report
        values["records"] = edits_and_switch(values["records"], self._batch.core.records)
        if Need.SCORES not in live.request.needs:
            values["scores"] = []  # another row's
        return report._replace(step=values)

    def _wants_step(self, live: LiveRequest, number: int) -> bool:
        trace = live.request.spec.trace
        return trace.level == "full" and number <= min(trace.max_steps, self._max_steps)


def report_of(
    batch: Batch,
    step: StepReport | DraftReport | None,
    rows: Sequence[tuple[int, LiveRequest]],
    max_steps: int,
) -> PendingReport | None:
    """The report of a step; where it cannot be made, the step's requests end."""
    if step is None or not rows:
        return None
    try:
        return PendingReport(batch, step, rows, max_steps)
    except Exception:
        batch.fail_rows()
        return None


def _to_host(column: Tensor, fresh: bool = False) -> Tensor:
    if column.device.type == "cpu":
        # What it was cut from may be written again before it is read.
        return column if fresh else column.clone()
    host = torch.empty(column.shape, dtype=column.dtype, pin_memory=True)
    return host.copy_(column, non_blocking=True)
