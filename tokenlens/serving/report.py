"""What a committed step tells the outside: totals always, the step itself where it was asked for.

The columns are copied to the host without waiting; whoever hands the step's tokens on waits for
both. Knows no requests' states, only their table's columns.
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
from tokenlens.serving.traces import COLUMNS
from tokenlens.spec.needs import Need


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
        self._usage = [batch.slots_in_use, batch.store.pages_in_use]
        self._counts = _to_host(batch.totals(), fresh=True)
        full = [live for _, live in rows if live.request.spec.trace.level == "full"]
        configs = [live.request.spec.trace for live in full]
        self._entries = max((one.most_entries(latent=True) for one in configs), default=0)
        self._step: list[Tensor] = []
        if full:
            self._step = [
                _to_host(column[:, : self._entries] if column.dim() == 2 else column)
                for column in (getattr(step, name) for name in COLUMNS[:-1])
            ]
            self._step.append(_to_host(step.records))
        self._ready: Any = None
        if core.device.type == "cuda":
            self._ready = torch.cuda.Event()
            self._ready.record()

    def result(self, failed: dict[str, str]) -> dict[str, list[Any]]:
        """Reports by request, as plain data; waits for the copies.

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

    def _result(self) -> dict[str, list[Any]]:
        if self._ready is not None:
            self._ready.synchronize()
        counts = self._counts.tolist()
        columns = [column.tolist() for column in self._step]
        found: dict[str, list[Any]] = {}
        for row, live, rewinds in self._rows:
            totals = counts[row]
            self._batch.saw(live.req_id, totals[0], totals[-1] == Phase.ANSWER, rewinds)
            report: list[Any] = [[*totals, int(live.same_noise)], self._usage]
            if columns and self._wants_step(live, totals[0]):
                values = [column[row] for column in columns]
                values[-1] = edits_and_switch(values[-1], self._batch.core.records)
                if Need.SCORES not in live.request.needs:
                    values[COLUMNS.index("scores")] = []  # a neighbour's
                report.append(values)
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
