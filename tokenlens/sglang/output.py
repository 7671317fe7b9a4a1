"""What a step tells SGLang's scheduler with its tokens: reports, failures, the radix guard.

SGLang's own lifecycle for such outputs (``managers/auxiliary_output.py``) carries it: the scheduler
consumes it after the tokens were committed and before they are streamed.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from tokenlens.serving.arguments import KEY
from tokenlens.serving.faults import FORGOTTEN
from tokenlens.serving.report import PendingReport

GUARD = "skip_radix_cache_insert"
"""SGLang's own attribute of requests whose KV must not be found under their token ids."""

LATENT = "_tokenlens_latent"
"""Our attribute of requests that may be fed mixtures, or shifted behind a layer."""

MORE = "Raise --tokenlens-history-mib, or --tokenlens-vectors-mib for methods that feed vectors."


def abort(req: Any, message: str) -> None:
    """End a request of SGLang's as an error; the engine goes on."""
    from http import HTTPStatus

    from sglang.srt.managers.schedule_batch import FINISH_ABORT

    req.to_finish = FINISH_ABORT(message, HTTPStatus.INTERNAL_SERVER_ERROR, "InternalServerError")


class StepOutput:
    """One step's report, on the device and then on the host: its copies are already under way."""

    def __init__(self, report: PendingReport | None, failed: dict[str, str]) -> None:
        self._report, self._failed = report, failed

    def copy_to_host(self, copy_tensor: Callable[[Tensor], Tensor]) -> "StepOutput":
        """The report copies for itself, in one piece."""
        return self

    def consume(self, batch: Any, commits: Sequence[Any]) -> None:
        """Hand reports to the requests whose token was committed."""
        reports = self._report.result(self._failed) if self._report is not None else {}
        for req, commit in zip(batch.reqs, commits):
            reason = self._failed.get(req.rid)
            if reason is not None:
                more = "." if reason != FORGOTTEN else f". {MORE}"
                abort(req, f"tokenlens: {reason}{more}")
            if commit is None:
                continue
            if getattr(req, LATENT, False):
                # Its prompt is in the cache by now; what comes after it must never be.
                setattr(req, GUARD, True)
            report = reports.get(req.rid)
            if report is not None:
                info = req.customized_info = req.customized_info or {}
                # One entry a token, as SGLang slices them.
                values = info.setdefault(KEY, [])
                values += [None] * (commit.output_index - len(values))
                values[commit.output_index :] = [report]
