"""The requests of one model runner: who has which slot, and what each step reads and writes.

Positions and numbers of tokens are known on the host; what the tokens are, only on the device. So
everything here is arithmetic on counts. Knows neither of the two model runners: they say which
requests come, go and are in this step's rows, and in which order.
"""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenlens.core import Core, Request
from tokenlens.core.columns import PHASE
from tokenlens.core.report import StepReport
from tokenlens.core.snapshots import SuspendedRequest
from tokenlens.errors import MethodError
from tokenlens.serving.embedding import Calls, InputEmbedding
from tokenlens.serving.faults import (
    BROKEN_STEP,
    FORGOTTEN,
    TAKEN_BACK,
    decide_apart,
    logger,
    reason_of,
)
from tokenlens.serving.layer_shifts import ShiftCalls
from tokenlens.serving.served_layers import ServedLayers
from tokenlens.serving.store import MISSED, NO_PAGE, PAGE, PLAIN, ConceptStore
from tokenlens.serving.vectors import VectorStore
from tokenlens.spec.needs import Need

Ints = NDArray[np.int64]

REWIND_STEPS = 4
"""Tokens that may be in flight when a request is preempted and its newest tokens are dropped."""

NO_PROMPT = 1 << 40
"""A prompt so long that no position lies behind it."""


@dataclass
class LiveRequest:
    """A request that is known to the runner, running or preempted."""

    req_id: str
    request: Request
    prompt_len: int
    latent: bool
    slot: int = -1
    preempted: bool = False
    suspended: SuspendedRequest | None = None
    detached_pages: Ints | None = None
    generated: int = 0
    answer: Ints = field(default_factory=lambda: np.zeros(2, dtype=np.int64))
    rewinds: int = 0
    noise: tuple[int, bytes] | None = None
    same_noise: bool = False


class Batch:
    """Slots, rows and entries of one model runner.

    Parameters
    ----------
    embedding
        ``None`` where no latent method is allowed.
    vectors
        ``None`` where no request may be fed more than concept tokens.
    layers
        ``None`` where no request may be shifted behind a decoder layer, or read what one leaves.
    """

    def __init__(
        self,
        core: Core,
        store: ConceptStore,
        embedding: InputEmbedding | None,
        vectors: VectorStore | None = None,
        layers: ServedLayers | None = None,
    ) -> None:
        self.core, self.store, self.embedding = core, store, embedding
        core.contained = {}
        self.vectors, self.layers = vectors, layers
        self.shifts = None if layers is None else layers.shifts
        # Whether anything is read where tokens are known to be
        self._has_history = embedding is not None or self.shifts is not None
        self.live: dict[str, LiveRequest] = {}
        # Requests that cannot go on, which the engine ends, and why
        self.failed: dict[str, str] = {}
        # What a report counts, in the order of the columns of `totals`, whose last is the phase
        self.counted = tuple(core.totals)
        reported = (*core.totals.values(), PHASE)
        places = [core.table.columns[column].start for column in reported]
        self._report_places = np.array(places, dtype=np.int64)
        self._report_columns = torch.tensor(places, device=core.device)
        slots = core.table.max_slots
        self._null = core.table.null_slot
        self._free = list(range(slots - 1, -1, -1))
        # [max_slots + 1] each; the last is that of rows without a request
        self._prompt: Ints = np.full(slots + 1, NO_PROMPT, dtype=np.int64)
        self._generated: Ints = np.zeros(slots + 1, dtype=np.int64)
        self._latent = np.zeros(slots + 1, dtype=bool)
        # Slots whose tokens have entries of the history: latent or shifted
        self._kept = np.zeros(slots + 1, dtype=bool)
        # [max_slots + 1, 2]: the tokens that are known to be the newest answer, first and stop
        self._answer: Ints = np.zeros((slots + 1, 2), dtype=np.int64)
        self._rows: list[str] = []
        self._changed = True
        self._num_pointers = 0
        self._fed_latent = False
        self._calls = self._shift_calls = 0
        self._fed_shifts = False
        # Between `begin` and `commit`: other calls of model and sampler are a warm-up.
        self._open = False
        nothing = torch.zeros(0, dtype=torch.int64, device=core.device)
        # [num_rows] each, of this step
        self._slots: Ints = np.zeros(0, dtype=np.int64)
        self.slots = nothing
        self._prompts: Ints = np.zeros(0, dtype=np.int64)
        self._owned = self._may_mix = self._has_entries = np.zeros(0, dtype=bool)
        self._advance: NDArray[np.bool_] = np.zeros(0, dtype=bool)
        self._advance_tensor = nothing
        # Where this step's concept tokens go
        self._entries: Ints = np.zeros(0, dtype=np.int64)
        # Where they went in the last step, if all rows took one and are still the same
        self._last: Ints | None = None

    # Requests come and go.

    def admit(
        self,
        req_id: str,
        request: Request,
        prompt: Sequence[int],
        prompt_len: int,
        vectors: int = 0,
    ) -> None:
        """A new request, with the tokens of its prompt, and the vectors that it may need."""
        self.finish([req_id])
        latent = request.spec.latent is not None
        live = LiveRequest(req_id, request, prompt_len, latent)
        slot = self._take_slot()
        try:
            self.core.add(slot, request, prompt, prompt_len)
        except BaseException:
            # As if it had never come: it holds no slot.
            self._free.append(slot)
            raise
        self._notice_noise(live, prompt)
        if self.vectors is not None:
            self.vectors.admit(req_id, vectors)
        self.live[req_id] = live
        self._assign_slot(live, slot)

    def _notice_noise(self, live: LiveRequest, prompt: Sequence[int]) -> None:
        """Mark requests whose noise is the same: of equal prompts with an equal seed."""
        key = live.request.noise_key
        if key is None:
            return
        # A digest: prompts are long, and each would be compared with those of all others.
        tokens = np.asarray(prompt, dtype=np.int64)
        live.noise = key, blake2b(tokens.tobytes(), digest_size=16).digest()
        for other in self.live.values():
            if other.noise == live.noise:
                other.same_noise = live.same_noise = True

    def preempt(self, req_id: str) -> None:
        """A request lost its KV cache. It keeps its slot until another request needs it."""
        live = self.live.get(req_id)
        if live is not None:
            live.preempted = True
            self._changed = True

    def resume(self, req_id: str, generated: int) -> None:
        """A preempted request comes back; the scheduler knows ``generated`` of its tokens."""
        live = self.live.get(req_id)
        if live is None:
            return
        try:
            self._resume(live, generated)
        except Exception:
            self.fail(req_id)

    def _resume(self, live: LiveRequest, generated: int) -> None:
        live.preempted = False
        self._changed = True
        if live.slot < 0:
            slot = self._take_slot()
            assert live.suspended is not None
            assert live.detached_pages is not None
            self.core.resume(slot, live.suspended)
            self.store.attach(slot, live.detached_pages)
            live.suspended = live.detached_pages = None
            self._assign_slot(live, slot)
            lost = self.store.pages[slot, max(0, generated - 1) // PAGE] == MISSED
            if self.vectors is not None:
                lost |= self.vectors.without_extent[slot] and generated > 0
            if lost:
                # Its newest concept token was in the slot that it had before.
                self.failed[live.req_id] = FORGOTTEN
        self._drop(live, generated)

    def _drop(self, live: LiveRequest, generated: int) -> None:
        """Take back what a request has beyond so many tokens."""
        dropped = int(self._generated[live.slot]) - generated
        if dropped > REWIND_STEPS or dropped < 0:
            self.failed[live.req_id] = TAKEN_BACK
        elif dropped > 0:
            self.core.rewind(live.slot, generated)
            self._generated[live.slot] = generated
            live.rewinds += 1
            answer = self._answer[live.slot]
            answer[1] = min(answer[1], generated)

    def finish(self, req_ids: Iterable[str]) -> None:
        """Requests that ended, however they did."""
        for req_id in req_ids:
            self.failed.pop(req_id, None)
            live = self.live.pop(req_id, None)
            if live is None:
                continue
            self._changed = True
            if live.detached_pages is not None:
                self.store.free_detached(live.detached_pages)
            if live.suspended is not None:
                self.core.discard(live.suspended)
            if self.vectors is not None:
                self.vectors.finish(req_id)
            if live.slot >= 0:
                self.store.release(live.slot)
                self._release_slot(live)
                self.core.remove(live.slot)

    def fail(self, req_id: str, reason: str = "", error: BaseException | None = None) -> None:
        """End one request after an exception, the one that is being handled; the engine goes on."""
        error = error or sys.exception()
        reason = reason or reason_of(error)
        logger.error("request %s: %s", req_id, reason, exc_info=error)
        self.finish([req_id])
        self.failed[req_id] = reason

    def fail_method(self, error: MethodError) -> int:
        """End the requests of this step whose method from outside went wrong; returns how many.

        Those of the error's rows, or all that name the method where it knows none.
        """
        ended = 0
        for req_id in [self._rows[row] for row in error.rows] or self._rows:
            live = self.live.get(req_id)
            if live is not None and error.method in live.request.methods:
                self.fail(req_id, error=error)
                ended += 1
        self.leave_rows()
        return ended

    def take_failed(self) -> dict[str, str]:
        """Requests that cannot go on, with the reason; they are the caller's to end from now on."""
        found, self.failed = self.failed, {}
        return dict(sorted(found.items()))

    def _take_slot(self) -> int:
        if not self._free:
            # More requests were preempted than there are spare slots: the one that lost its place
            # first gives up its slot, not its state.
            idle = next(one for one in self.live.values() if one.preempted and one.slot >= 0)
            slot = idle.slot
            idle.generated = int(self._generated[slot])
            idle.answer = self._answer[slot].copy()
            idle.suspended = self.core.suspend(slot)
            idle.detached_pages = self.store.detach(slot)
            self._release_slot(idle)
            idle.slot = -1
        return self._free.pop()

    def _assign_slot(self, live: LiveRequest, slot: int) -> None:
        live.slot = slot
        self._prompt[slot] = live.prompt_len
        self._generated[slot] = live.generated
        self._latent[slot] = live.latent
        if self.vectors is not None:
            self.vectors.seat(slot, live.req_id, live.request)
        if self.layers is not None:
            self.layers.seat(slot, live.request)
        self._kept[slot] = live.latent or (self.shifts is not None and self.shifts.shifts[slot])
        self._answer[slot] = live.answer
        self._changed = True

    def _release_slot(self, live: LiveRequest) -> None:
        slot = live.slot
        self._free.append(slot)
        self._prompt[slot] = NO_PROMPT
        self._latent[slot] = self._kept[slot] = False
        if self.layers is not None:
            self.layers.leave(slot)
        if self.vectors is not None:
            self.vectors.leave(slot)

    @property
    def slots_in_use(self) -> int:
        """Slots that belong to requests."""
        return self.core.table.max_slots - len(self._free)

    # Steps.

    def begin(self, req_ids: Sequence[str], computed: Ints, scheduled: Ints) -> None:
        """Prepare one forward pass.

        Parameters
        ----------
        req_ids
            Requests by row.
        computed, scheduled
            ``[num_rows]``: tokens of each row that are in the KV cache, and that this pass adds.
        """
        self._open = bool(self.live)
        if self.vectors is not None:
            self.vectors.begin(self.core, len(req_ids))
        if self.layers is not None:
            # Behind the vectors, which may have no need of the head's rows.
            self.layers.begin(self.core, len(req_ids))
        if not self._open:
            self._clean(0)
            return
        try:
            self._begin(req_ids, computed, scheduled)
        except Exception:
            self._open, self._rows = False, list(req_ids)
            self.fail_rows()
            if self.embedding is not None:
                self.embedding.pointers.fill_(-1)
            if self.shifts is not None:
                self.shifts.places[0].fill_(-1)
            self._fed_latent, self._fed_shifts, self._num_pointers = False, False, 0

    def _begin(self, req_ids: Sequence[str], computed: Ints, scheduled: Ints) -> None:
        if self._changed or self._rows != req_ids:
            self._notice_rows(req_ids)
        # The number that the next sampled token has in its request; a chunk of a prompt has none.
        number = computed + scheduled - self._prompts
        self._advance = self._advances(number)
        self._advance_tensor = self._upload(self._advance)
        if self.layers is not None:
            self.layers.read(self._upload, self._slots, self._advance, number, scheduled)
        if self._has_history:
            self._find_pointers(computed, scheduled)
            self._make_room(number)

    def _advances(self, number: Ints) -> NDArray[np.bool_]:
        """Rows that commit a token in this step, ``[num_rows]``."""
        advance: NDArray[np.bool_] = (number == self._generated[self._slots]) & self._owned
        return advance

    def _notice_rows(self, req_ids: Sequence[str]) -> None:
        self._rows = list(req_ids)
        seats = {req_id: live.slot for req_id, live in self.live.items()}
        slots = [seats.get(req_id, self._null) for req_id in req_ids]
        self._slots = np.array(slots, dtype=np.int64)
        self.slots = self._upload(self._slots)
        self._prompts = self._prompt[self._slots]
        self._owned = self._slots != self._null
        self._may_mix = self._latent[self._slots]
        self._has_entries = self._kept[self._slots]
        self._advance = np.zeros(len(slots), dtype=bool)
        self._entries = np.full(len(slots), self.store.nowhere)
        self._last = None
        self._changed = False

    def _find_pointers(self, computed: Ints, scheduled: Ints) -> None:
        """Tell the embedding where each token's concept token is, if it may have one."""
        slots, num_tokens = self._slots, int(scheduled.sum())
        if self._last is not None and num_tokens == len(slots) and self._advance.all():
            # Decoding goes on: each row is fed what the last step kept for it.
            self._write_pointers(np.where(self._last < self.store.nowhere, self._last, -1), slots)
            return
        kept = self._has_entries & (computed + scheduled > self._prompts)
        if not kept.any():
            self._clean(num_tokens)
            return
        if num_tokens == len(slots):
            owner, index = slots, computed - self._prompts
        else:
            row = np.repeat(np.arange(len(slots)), scheduled)
            first = np.repeat(np.cumsum(scheduled) - scheduled, scheduled)
            owner = slots[row]
            index = computed[row] + np.arange(num_tokens) - first - self._prompt[owner]
        fed = self._kept[owner] & (index >= 0)
        owner, place = np.where(fed, owner, self._null), np.where(fed, index, 0)
        pages, (first, stop) = self.store.states(owner, place), self._answer[owner].T
        fed = fed & (pages != PLAIN) & ~((place >= first) & (place < stop))
        missed = pages == MISSED
        if self.vectors is not None:
            missed |= self.vectors.without_extent[owner]
        lost = fed & missed & (place < self._generated[owner] - 1)
        if lost.any():
            gone = set(owner[lost].tolist())
            for live in self.live.values():
                if live.slot in gone:
                    self.failed[live.req_id] = FORGOTTEN
        self._write_pointers(np.where(fed, self.store.entries(owner, place), -1), owner)

    def _write_pointers(self, entries: Ints, owner: Ints) -> None:
        """Entries at which tokens are read, and their slots, ``[num_tokens]`` each."""
        if self.shifts is not None:
            self._fed_shifts = self.shifts.write(self._upload, entries, owner)
            self._shift_calls = ShiftCalls.count
            if not self._may_mix.any():
                self._clean_pointers(len(entries))
                return
            entries = np.where(self._latent[owner], entries, -1)
        if self.embedding is None:
            return
        num_tokens, pointers = len(entries), self.embedding.pointers
        pointers[:num_tokens].copy_(self._upload(entries), non_blocking=True)
        if self._num_pointers > num_tokens:
            pointers[num_tokens : self._num_pointers].fill_(-1)
        self._num_pointers = num_tokens
        self._fed_latent = True
        self._calls = Calls.count

    def _clean(self, num_tokens: int) -> None:
        self._fed_shifts = False
        if self.shifts is not None:
            self.shifts.clean()
        self._clean_pointers(num_tokens)

    def _clean_pointers(self, num_tokens: int) -> None:
        self._fed_latent = False
        if self._num_pointers and self.embedding is not None:
            self.embedding.pointers[: self._num_pointers].fill_(-1)
            self._num_pointers = 0

    def _make_room(self, number: Ints) -> None:
        """Pages for the tokens of this step, and where each goes."""
        slots = self._slots
        wants = self._advance & self._has_entries
        place = np.where(wants, number, 0)
        homeless = wants & (self.store.states(slots, place) == NO_PAGE)
        if homeless.any():
            for row in np.flatnonzero(homeless):
                try:
                    self._take_page(int(slots[row]), int(place[row]))
                except Exception:
                    self.fail(self._rows[row])
            if self._changed:
                self.leave_rows()
                wants = wants & self._owned
                slots, place = self._slots, np.where(wants, place, 0)
        self._entries = np.where(wants, self.store.entries(slots, place), self.store.nowhere)

    def _take_page(self, slot: int, index: int) -> None:
        page = self.store.take_page(slot, index)
        if self.vectors is not None and page >= 0:
            self.vectors.take_page(page, self.store.first_entry(page), slot)

    def decide(self, logits: Tensor, *, in_place: bool = False) -> Tensor:
        """The logits that the engine samples from; the same tensor, edited, where it may be."""
        if self._is_idle():
            return logits
        if logits.device.type == "cpu":
            self._check_calls()
        try:
            return self.core.step(logits, self.slots, in_place=in_place)
        except Exception:
            logger.exception("a step fails; each of its requests is tried alone")
            return decide_apart(self, logits)

    def _check_calls(self) -> None:
        """Refuse what a graph that was compiled without our ops has left out."""
        lost = []
        if self._fed_latent and self._calls == Calls.count:
            lost.append("look up tokens through tokenlens, so mixtures were lost")
        if self._fed_shifts and self._shift_calls == ShiftCalls.count:
            lost.append("pass by its seats at decoder layers, so shifts were lost")
        if self.layers is not None and self.layers.was_missed:
            lost.append("pass by its seats at decoder layers, so hidden states were not read")
        for one in lost:
            raise RuntimeError(
                f"the model's forward pass did not {one}: a graph that was compiled without it."
                " Delete the engine's compile cache, and let the engine's list of plugins, if it"
                " is set, include tokenlens."
            )

    def fail_rows(self) -> None:
        """End all requests of this step, after an exception that is none's alone."""
        for req_id in self._rows:
            if req_id in self.live:
                self.fail(req_id, BROKEN_STEP)
        self.leave_rows()

    def leave_rows(self) -> None:
        """Some requests of this step have gone: their rows have no request any more."""
        advance, entries = self._advance, self._entries
        self._notice_rows(self._rows)
        self._changed = True
        if len(advance) == len(self._owned):
            self._advance = advance & self._owned
            self._entries = np.where(self._owned, entries, self.store.nowhere)
        self._advance_tensor = self._upload(self._advance)

    def commit(self, sampled: Tensor) -> StepReport | None:
        """Take the tokens that were sampled, ``[num_rows]``, and keep what is fed next."""
        if self._is_idle():
            return None
        self._open = False
        entries = self._upload(self._entries) if self._has_history else None
        try:
            step = self.core.commit(sampled.long(), self.slots, self._advance_tensor, entries)
        except Exception:
            # What of their state had been written is not known.
            self.fail_rows()
            self._last = None
            return None
        self._follow(entries)
        return step

    def _follow(self, entries: Tensor | None) -> None:
        """Count what was committed, and remember where the next inputs went."""
        for error in self.core.take_contained().values():
            self.fail_method(error)
        self._generated[self._slots] += self._advance
        self._last = None
        shifted = Need.LAYER_SHIFT in self.core.live_needs
        if entries is not None and (self.core.may_be_latent or shifted):
            if self._advance.all():
                self._last = self._entries
            if self.shifts is not None and shifted:
                self.shifts.keep(self.core, entries, self.slots)
            if self.vectors is not None and self.core.live_needs & Need.OF_ENGINE:
                self.vectors.keep(self.core, entries, self.slots)

    def totals(self) -> Tensor:
        """The columns of a report, ``[num_rows, len(counted) + 1]``: a copy."""
        table = self.core.table.ints
        if table.device.type == "cpu":
            return torch.from_numpy(table.numpy()[self._slots[:, None], self._report_places])
        return table.index_select(0, self.slots).index_select(1, self._report_columns)

    def counts_of(self, ints: Tensor) -> Tensor:
        """The same of copies of the table's rows, ``[num_rows, columns]``."""
        return ints.index_select(1, self._report_columns)

    def advanced(self) -> list[tuple[int, LiveRequest]]:
        """Rows that commit a token in this step."""
        if self._is_idle():
            return []
        wanted = []
        for row in np.flatnonzero(self._advance):
            live = self.live.get(self._rows[row])
            if live is not None:
                wanted.append((int(row), live))
        return wanted

    def saw(self, req_id: str, number: int, answering: bool, rewinds: int) -> None:
        """A report: the phase that a request is in after ``number`` tokens.

        What is fed in an answer is the tokens themselves, so that its pages go back as soon as all
        of a page is known to be answer. The newest ones stay: thinking may be opened again.

        ``rewinds`` is how often it had been taken back when this was seen: what was seen of tokens
        that were dropped since does not count.
        """
        live = self.live.get(req_id)
        # Those may feed mixtures in an answer, or be shifted there.
        if live is None or live.request.needs & (Need.AFTER_THINKING | Need.LAYER_SHIFT):
            return
        if live.rewinds != rewinds:
            return
        answer = live.answer if live.slot < 0 else self._answer[live.slot]
        if not answering:
            answer[:] = 0
            return
        if answer[1] != number - 1:
            # The token that led here is fed as itself.
            answer[0] = number - 1
        answer[1] = number
        if live.slot >= 0:
            self.store.give_back(live.slot, int(answer[0]), number - REWIND_STEPS)

    def _is_idle(self) -> bool:
        return not self._open or self.core.idle

    def _upload(self, values: NDArray[Any]) -> Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(values))
        if self.core.device.type == "cpu":
            return tensor
        return tensor.pin_memory().to(self.core.device, non_blocking=True)
