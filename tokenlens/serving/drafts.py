"""A batch of an engine that drafts: how many tokens a request has, only the device knows.

Which rows advance, and by how much, is read off positions and accepted counts on the device. The
host follows with the reports. Latent requests have no drafts, which would be fed behind a token
where a mixture belongs: the engine holds theirs back, so that the host counts their tokens as ever.
Knows no engine.
"""

from collections import deque
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenlens.core import Core
from tokenlens.core.columns import POSITION
from tokenlens.core.drafts import DraftReport, DraftSteps
from tokenlens.errors import MethodError
from tokenlens.serving.batch import REWIND_STEPS, Batch, Ints, LiveRequest
from tokenlens.serving.embedding import InputEmbedding
from tokenlens.serving.faults import HELD, TAKEN_BACK, logger
from tokenlens.serving.store import ConceptStore


def rewind_steps(drafts: int) -> int:
    """States that a core keeps beside so many drafts: of a step, and of those in flight."""
    return drafts + REWIND_STEPS * (drafts + 1)


class DraftedBatch(Batch):
    """The requests of one model runner that has up to some drafts of each in a step.

    Parameters
    ----------
    drafts
        The most drafts of a request in one step.
    """

    def __init__(
        self, core: Core, store: ConceptStore, embedding: InputEmbedding | None, drafts: int
    ) -> None:
        super().__init__(core, store, embedding)
        if core.rewind_steps < rewind_steps(drafts):
            raise ValueError(
                f"rewind_steps: got {core.rewind_steps}; allowed: at least"
                f" {rewind_steps(drafts)} beside {drafts} drafts"
            )
        self._drafted = DraftSteps(core, None if embedding is None else store.nowhere)
        # The most tokens that are taken back at once
        self._room = REWIND_STEPS * (drafts + 1)
        self._num_drafts: Ints = np.zeros(0, dtype=np.int64)
        # [offsets, num_rows]: where in the logits each row's offsets are
        self._places = torch.zeros(1, 0, dtype=torch.int64, device=core.device)
        # By request: tokens that a report has shown, and rows of the steps that none has yet
        self._known: dict[str, int] = {}
        self._flight: dict[str, deque[int]] = {}

    def expect(self, num_drafts: Ints | None, num_rows: int) -> None:
        """Drafts of each row of the next forward pass, ``[num_rows]``; ``None``: there is none."""
        self._num_drafts = np.zeros(num_rows, dtype=np.int64)
        if num_drafts is not None:
            self._num_drafts[:] = num_drafts

    def _begin(self, req_ids: Sequence[str], computed: Ints, scheduled: Ints) -> None:
        self._drafted.forget()
        super()._begin(req_ids, computed, scheduled)
        drafted = self._may_mix & (self._num_drafts > 0)
        for row in np.flatnonzero(drafted):
            self.fail(self._rows[row], HELD)
        if drafted.any():
            self.leave_rows()
        count = self._num_drafts + 1
        first = np.cumsum(count) - count
        offset = np.arange(count.max())[:, None]
        self._places = self._upload(first + np.where(offset < count, offset, 0))

    def _advances(self, number: Ints) -> NDArray[np.bool_]:
        """Rows that may advance: of those with drafts, which do is found on the device."""
        advance: NDArray[np.bool_] = super()._advances(number) | (self._owned & ~self._may_mix)
        return advance

    def decide_rows(self, logits: Tensor, tokens: Tensor, positions: Tensor) -> Tensor:
        """The logits that drafts are verified with, edited where they lie.

        Parameters
        ----------
        logits
            ``[rows, vocab]``: of each request as many as it has drafts, and one, in their order.
        tokens, positions
            ``[rows]``: what the model was fed at each row, and where.
        """
        if self._is_idle():
            return logits
        if logits.device.type == "cpu":
            self._check_calls()
        places = self._places
        wanted = int(self._num_drafts.sum()) + len(self._num_drafts)
        if wanted != len(logits):
            logger.error("a step with drafts has %d rows of logits, not %d", len(logits), wanted)
            self.fail_rows()
            return logits
        with torch.inference_mode():
            none = places[1:] == places[:1]
            drafts = torch.where(none, -1, tokens[places[1:]].long())
            due = self.core.table.column(POSITION)
            position = positions[places[0]] + 1
        while True:
            slots = self.slots
            try:
                advance = position == due.index_select(0, slots)
                return self._drafted.step(logits, slots, places, drafts, advance)
            except MethodError as error:
                # Without those that it ended, there is one fewer that can raise.
                if self.fail_method(error):
                    continue
            except Exception:
                logger.exception("a step with drafts fails; all of its requests end")
            self.fail_rows()
            return logits

    def commit_rows(self, sampled: Tensor, num_sampled: Tensor) -> DraftReport | None:
        """Take the tokens that were sampled.

        Parameters
        ----------
        sampled
            ``[num_rows, offsets]``.
        num_sampled
            ``[num_rows]``: how many of them count; 0 for a chunk of a prompt.
        """
        if self._is_idle():
            return None
        self._open = False
        entries = None if self.embedding is None else self._upload(self._entries)
        try:
            report = self._drafted.commit(sampled, num_sampled, entries)
        except Exception:
            # What of their state had been written is not known.
            self.fail_rows()
            self._last = None
            return None
        # Of those with drafts the number on the host is none, and nobody asks for it.
        self._follow(entries)
        return report

    def advanced(self) -> list[tuple[int, LiveRequest]]:
        """Rows that may commit tokens in this step; their reports say whether they did."""
        wanted = super().advanced()
        for row, live in wanted:
            if live.latent:
                continue
            rows = int(self._num_drafts[row]) + 1
            self._flight.setdefault(live.req_id, deque()).append(rows)
        return wanted

    def saw(self, req_id: str, number: int, answering: bool, rewinds: int) -> None:
        """A report: the tokens that a request has."""
        live, flight = self.live.get(req_id), self._flight.get(req_id)
        if live is not None and live.latent:
            super().saw(req_id, number, answering, rewinds)
        elif live is not None and live.rewinds == rewinds and flight:
            flight.popleft()
            self._known[req_id] = number

    def _drop(self, live: LiveRequest, generated: int) -> None:
        if live.latent:
            super()._drop(live, generated)
            return
        flight = self._flight.pop(live.req_id, deque())
        # At most, because of the steps in flight only the rows are known.
        most = self._known.get(live.req_id, 0) + sum(flight) - generated
        if not 0 <= most <= self._room:
            self.failed[live.req_id] = TAKEN_BACK
            return
        self._known[live.req_id] = generated
        live.rewinds += 1
        slots = self._upload(np.array([live.slot], dtype=np.int64))
        self.core.rewind_rows(slots, self._upload(np.array([generated], dtype=np.int64)))

    def finish(self, req_ids: Iterable[str]) -> None:
        """Requests that ended, however they did."""
        req_ids = list(req_ids)
        super().finish(req_ids)
        for req_id in req_ids:
            self._known.pop(req_id, None)
            self._flight.pop(req_id, None)
