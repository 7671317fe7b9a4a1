"""What a committed step tells the outside: totals always, the step itself where it was asked for.

The columns are copied to the host without waiting; the adapter, which hands the
step's tokens on, waits for both. Knows no requests' states, only their table's columns.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tokenlens.core.columns import Phase
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
        step: StepReport,
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
        self._counts = _to_host(batch.totals(), fresh=True)
        full = [live for _, live in rows if live.request.spec.trace.level == "full"]
        configs = [live.request.spec.trace for live in full]
        self._entries = max((one.most_entries(latent=True) for one in configs), default=0)
        self._step: dict[str, Tensor] = {}
        if full:
            # Which rows advanced is known on the host.
            columns = step._replace(
                weights=step.weights[:, : self._entries],
                ids=step.ids[:, : self._entries],
                scores=step.scores[:, : self._entries],
            )._asdict()
            del columns["advanced"]
            self._step = {name: _to_host(column) for name, column in columns.items()}
        self._ready: Any = None
        if core.device.type == "cuda":
            self._ready = torch.cuda.Event()
            self._ready.record()

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
        counts = self._counts.tolist()
        columns = {name: column.tolist() for name, column in self._step.items()}
        names, found = self._batch.counted, {}
        for row, live, rewinds in self._rows:
            *totals, phase = counts[row]
            report = RequestReport(
                dict(zip(names, totals, strict=True)), phase, live.same_noise, self._usage
            )
            number = report.counts["tokens"]
            self._batch.saw(live.req_id, number, phase == Phase.ANSWER, rewinds)
            if columns and self._wants_step(live, number):
                values = {name: column[row] for name, column in columns.items()}
                values["records"] = edits_and_switch(values["records"], self._batch.core.records)
                if Need.SCORES not in live.request.needs:
                    values["scores"] = []  # another row's
                report = report._replace(step=values)
            found[live.req_id] = report
        return found

    def _wants_step(self, live: LiveRequest, number: int) -> bool:
        trace = live.request.spec.trace
        return trace.level == "full" and number <= min(trace.max_steps, self._max_steps)


def report_of(
    batch: Batch, step: StepReport | None, rows: Sequence[tuple[int, LiveRequest]], max_steps: int
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
