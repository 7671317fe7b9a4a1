"""The thread that runs one model for many calls: which rows read on, and what comes of them.

Knows a call's ids and how to sample, no policy and no event loop.
"""

import queue
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from tokenlens.routing import hf_sampling
from tokenlens.routing.backend import Ask, Chunk, Finish
from tokenlens.routing.facts import Fact
from tokenlens.routing.hf_cache import SlotCache, cache_argument
from tokenlens.routing.signals import FirstTokenSignals
from tokenlens.routing.vocabulary import RouterVocabulary

MAX_QUERIES = 512
"""Tokens of one row that one forward pass reads."""
MAX_LOGITS = 1 << 26
"""Logits that one scoring pass may make."""


@dataclass
class Slot:
    """One session's place in the cache."""

    index: int
    # what its cache holds
    ids: list[int] = field(default_factory=list)
    busy: bool = False
    # released while its last call was still running
    over: bool = False


@dataclass
class Job:
    """One call. ``ids`` is all that the model must have read before the next token."""

    session: str
    ids: list[int]
    deliver: Callable[[Any], object]
    ask: Ask | None = None
    # ids whose log-probabilities are wanted; then nothing is generated
    scored: tuple[int, ...] = ()
    slot: Slot | None = None
    # whether entropies are wanted, too
    entropies: bool = False
    made: int = 0
    unsent: list[int] = field(default_factory=list)
    signals: FirstTokenSignals | None = None
    facts: list[Fact] = field(default_factory=list)
    is_cancelled: bool = False


class Worker:
    """One model's batch.

    Attributes
    ----------
    inbox
        Calls; names of sessions that are over; ``None`` to end.
    limit
        Positions of the model.
    """

    def __init__(self, model: Any, vocabulary: RouterVocabulary, max_sessions: int) -> None:
        self._model = model
        self._vocabulary = vocabulary
        config = model.config.get_text_config()
        self.limit = int(getattr(config, "max_position_embeddings", 0) or 1 << 30)
        self._width = min(len(vocabulary.pieces), int(config.vocab_size))
        self._additive = config._attn_implementation == "eager"
        self._cache = SlotCache(max_sessions)
        self._kept = {cache_argument(model.forward): self._cache, "use_cache": True}
        self._slots: OrderedDict[str, Slot] = OrderedDict()
        self._free = [Slot(index) for index in reversed(range(max_sessions))]
        self.inbox: queue.SimpleQueue[Job | str | None] = queue.SimpleQueue()
        self._waiting: list[Job] = []
        self._running: list[Job] = []

    @torch.inference_mode()
    def run(self) -> None:
        """Serve the inbox until it holds ``None``; this is the thread."""
        while True:
            is_idle = not (self._running or self._waiting)
            try:
                while True:
                    item = self.inbox.get(block=is_idle)
                    if item is None:
                        return
                    if isinstance(item, str):
                        self._forget(item)
                    else:
                        self._waiting.append(item)
                        is_idle = False
            except queue.Empty:
                pass
            self._admit()
            try:
                self._tick()
            except Exception as error:
                # Whoever waits gets the error; the caches may be half written.
                for job in list(self._running):
                    job.deliver(error)
                    assert job.slot is not None
                    job.slot.ids = []
                    self._end(job)

    def _admit(self) -> None:
        waiting, self._waiting = self._waiting, []
        for job in waiting:
            if job.is_cancelled:
                continue
            is_new = job.session not in self._slots
            slot = self._slot(job.session)
            if slot is None:
                self._waiting.append(job)
                continue
            if is_new and job.ask is not None and job.ask.fork_of is not None:
                self._fork(job.ask.fork_of, slot, job.ids)
            slot.busy, job.slot = True, slot
            # The last token is read again: its logits are what the next one is chosen from. Where
            # log-probabilities are wanted, so is everything that they come from.
            keep = _common(slot.ids, job.ids, len(job.ids) - max(1, len(job.scored)))
            del slot.ids[keep:]
            self._running.append(job)

    def _slot(self, session: str) -> Slot | None:
        slot = self._slots.get(session)
        if slot is not None:
            self._slots.move_to_end(session)
            return None if slot.busy else slot
        if not self._free:
            idle = next((name for name, one in self._slots.items() if not one.busy), None)
            if idle is None:
                return None
            self._forget(idle)
        slot = self._slots[session] = self._free.pop()
        return slot

    def _fork(self, parent: str, slot: Slot, ids: list[int]) -> None:
        """Have a new slot begin with what its parent's has read of the same context."""
        source = self._slots.get(parent)
        if source is None or source is slot:
            return
        keep = _common(source.ids, ids, len(ids))
        self._cache.copy(source.index, slot.index, keep)
        slot.ids = ids[:keep]

    def _forget(self, session: str) -> None:
        slot = self._slots.get(session)
        if slot is None:
            return
        if slot.busy:
            slot.over = True
            return
        del self._slots[session]
        slot.ids, slot.over = [], False
        self._free.append(slot)

    def _tick(self) -> None:
        """One forward pass for rows that read one token, and one for those that read more."""
        for job in [job for job in self._running if job.is_cancelled]:
            self._end(job)
        short: list[Job] = []
        long: list[Job] = []
        scored: list[Job] = []
        for job in self._running:
            assert job.slot is not None
            unread = len(job.ids) - len(job.slot.ids)
            if job.scored and unread == len(job.scored):
                scored.append(job)
            else:
                (short if unread == 1 else long).append(job)
        if long:
            self._read(long)
        if short:
            self._read(short)
        for job in scored:
            self._score(job)

    def _read(self, jobs: list[Job]) -> None:
        """Read on in each row, and sample where all is read."""
        chunks = []
        for job in jobs:
            assert job.slot is not None
            stop = len(job.ids) - (len(job.scored) if job.scored else 0)
            chunks.append(job.ids[len(job.slot.ids) : stop][:MAX_QUERIES])
        lasts = [len(chunk) - 1 for chunk in chunks]
        wanted = sorted(set(lasts))
        logits = self._forward(jobs, chunks, wanted)
        rows, picked = [], []
        for row, (job, chunk) in enumerate(zip(jobs, chunks)):
            assert job.slot is not None
            job.slot.ids += chunk
            if not job.scored and len(job.slot.ids) == len(job.ids):
                rows.append(row)
                picked.append(wanted.index(lasts[row]))
        if not rows:
            return
        device = logits.device
        # [num_picked, vocab]
        last = logits[torch.tensor(rows, device=device), torch.tensor(picked, device=device)]
        self._sample([jobs[row] for row in rows], last[:, : self._width].float())

    def _sample(self, jobs: list[Job], logits: Tensor) -> None:
        asks = [job.ask for job in jobs if job.ask is not None]
        how = [ask.sampling for ask in asks]
        tokens = hf_sampling.sample(logits, how, [len(job.ids) for job in jobs])
        curious = [row for row, job in enumerate(jobs) if asks[row].signals and job.made == 0]
        if curious:
            facts = hf_sampling.signals(logits[curious])
            for row, entropy, ids, values in zip(curious, *facts):
                texts = [self._vocabulary.piece(token) for token in ids]
                jobs[row].signals = FirstTokenSignals(tuple(zip(texts, values)), entropy)
        # The loop over steps ends on the host: this is the one read of a step.
        drawn = tokens.tolist()
        self._note_facts(jobs, asks, logits, drawn)
        for job, ask, token in zip(jobs, asks, drawn):
            if ask.trip is not None and ask.trip.is_met(job.facts[-1]):
                # The token that tripped is not written: only its distribution is told.
                job.deliver(Chunk(tuple(job.unsent), "", len(job.unsent), job.signals, "trip",
                                  tuple(job.facts)))  # fmt: skip
                self._end(job)
            else:
                self._push(job, ask, token)

    def _note_facts(
        self, jobs: list[Job], asks: list[Ask], logits: Tensor, drawn: list[int]
    ) -> None:
        for is_warped in (False, True):
            rows = [
                row for row, ask in enumerate(asks)
                if (ask.facts or ask.trip is not None) and ask.warped == is_warped
            ]  # fmt: skip
            if not rows:
                continue
            chosen = logits[rows]
            if is_warped:
                chosen = hf_sampling.warped(chosen, [asks[row].sampling for row in rows])
            count = max(1, *(asks[row].facts for row in rows), 1)
            found = hf_sampling.facts(chosen, [drawn[row] for row in rows], count)
            for row, fact in zip(rows, found):
                jobs[row].facts.append(replace(fact, top=fact.top[: max(1, asks[row].facts)]))

    def _push(self, job: Job, ask: Ask, token: int) -> None:
        job.made += 1
        job.ids.append(token)
        job.unsent.append(token)
        finish: Finish | None = None
        end = ask.matcher.push(token) if ask.matcher is not None else None
        if end == "eos" or (ask.matcher is None and token in self._vocabulary.eos_ids):
            finish = "eos"
        elif end is not None:
            finish = "stop"
        elif job.made >= ask.max_tokens or len(job.ids) >= self.limit:
            finish = "length"
        if finish is not None or ask.stream:
            facts, job.facts = tuple(job.facts), []
            job.deliver(Chunk(tuple(job.unsent), "", len(job.unsent), job.signals, finish, facts))
            job.unsent, job.signals = [], None
        if finish is not None:
            self._end(job)

    def _score(self, job: Job) -> None:
        assert job.slot is not None
        values: list[float] = []
        entropies: list[float] = []
        step = max(1, min(MAX_QUERIES, MAX_LOGITS // self._width))
        while len(job.slot.ids) < len(job.ids):
            chunk = job.ids[len(job.slot.ids) :][:step]
            logits = self._forward([job], [chunk], None)[0, :, : self._width].float()
            aim = torch.tensor(job.scored[len(values) :][: len(chunk)], device=logits.device)
            log_p = logits.log_softmax(-1)
            values += log_p.gather(1, aim[:, None])[:, 0].tolist()
            if job.entropies:
                finite = log_p.masked_fill(log_p == -torch.inf, 0.0)
                entropies += (-(log_p.exp() * finite).sum(-1)).tolist()
            job.slot.ids += chunk
        job.deliver((values, entropies) if job.entropies else values)
        self._end(job)

    def _end(self, job: Job) -> None:
        assert job.slot is not None
        job.slot.busy = False
        self._running.remove(job)
        if job.slot.over:
            self._forget(job.session)

    def _forward(
        self, jobs: list[Job], chunks: list[list[int]], wanted: list[int] | None
    ) -> Tensor:
        """Logits ``[num_rows, num_wanted, vocab]`` of right-padded chunks behind each slot."""
        width = max(len(chunk) for chunk in chunks)
        device = self._model.device
        slots = [job.slot for job in jobs if job.slot is not None]
        indices, starts = [slot.index for slot in slots], [len(slot.ids) for slot in slots]
        rows: list[int] | None = None
        first, last = min(indices), max(indices)
        if width == 1 and indices != list(range(first, last + 1)):
            span = last + 1 - first
            if 2 * len(indices) >= span:
                # Slots in between are run too: cheaper than copying the caches together. What they
                # write lies behind what they hold.
                held = {slot.index: slot for slot in self._slots.values()}
                rows = [index - first for index in indices]
                filled = [[0]] * span
                for row, chunk in zip(rows, chunks):
                    filled[row] = chunk
                chunks, indices = filled, list(range(first, last + 1))
                starts = [len(held[index].ids) if index in held else 0 for index in indices]
        ids = torch.tensor([chunk + [0] * (width - len(chunk)) for chunk in chunks], device=device)
        # [num_rows, num_queries]
        positions = torch.tensor(starts, device=device)[:, None] + torch.arange(
            width, device=device
        )
        span = max(starts) + width
        self._cache.aim(indices, positions, span)
        # [num_rows, 1, num_queries, span]
        mask = (torch.arange(span, device=device) <= positions[:, :, None])[:, None]
        if self._additive:
            lowest = torch.finfo(self._model.dtype).min
            mask = torch.zeros(mask.shape, dtype=self._model.dtype, device=device).masked_fill(
                ~mask, lowest
            )
        kept = {} if wanted is None else {"logits_to_keep": torch.tensor(wanted, device=device)}
        output = self._model(
            input_ids=ids, attention_mask=mask, position_ids=positions.clamp(max=self.limit - 1),
            **self._kept, **kept,
        )  # fmt: skip
        logits: Tensor = output.logits
        return logits if rows is None else logits[torch.tensor(rows, device=device)]


def _common(held: list[int], wanted: list[int], limit: int) -> int:
    """Length of the common beginning, at most ``limit``."""
    limit = max(0, min(limit, len(held)))
    if held[:limit] == wanted[:limit]:
        return limit
    return next(at for at in range(limit) if held[at] != wanted[at])
