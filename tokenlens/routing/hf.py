"""A Hugging Face model as a backend: one worker thread that batches whatever is asked of it.

Both models of a router are backends of their own, with a thread and caches of their own: neither
waits for the other. A session's cache is a slot and the ids that it holds; every call gives the
whole context, and what differs from there on is forgotten and read again. The caches are thereby
in step by ids, whoever wrote them.
"""

import asyncio
import queue
import threading
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tokenlens.routing import hf_sampling
from tokenlens.routing.backend import Ask, Chunk, Context, Finish
from tokenlens.routing.hf_cache import SlotCache
from tokenlens.routing.signals import Signals
from tokenlens.routing.vocabulary import Vocabulary
from tokenlens.spec import SpecError

MAX_QUERIES = 512
"""Tokens of one row that one forward pass reads."""
MAX_LOGITS = 1 << 26
"""Logits that one scoring pass may make."""


@dataclass
class _Slot:
    index: int
    # what its cache holds
    ids: list[int] = field(default_factory=list)
    busy: bool = False


@dataclass
class _Job:
    """One call. ``ids`` is all that the model must have read before the next token."""

    session: str
    ids: list[int]
    deliver: Callable[[Any], object]
    ask: Ask | None = None
    # ids whose log-probabilities are wanted; then nothing is generated
    scored: tuple[int, ...] = ()
    slot: _Slot | None = None
    made: int = 0
    unsent: list[int] = field(default_factory=list)
    signals: Signals | None = None
    is_cancelled: bool = False


class HFBackend:
    """A causal language model of transformers.

    Parameters
    ----------
    model
        With full attention in every layer, and ``sdpa`` or ``eager`` attention.
    vocabulary
        Its tokenizer.
    max_sessions
        Caches kept, and the largest batch. A session beyond it takes the cache of the one that has
        been idle longest, which then reads its context again.

    Raises
    ------
    SpecError
        The model cannot be run so.
    """

    gives_full_entropy = True

    def __init__(self, model: Any, vocabulary: Vocabulary, *, max_sessions: int = 64) -> None:
        _check(model)
        self._model = model.eval()
        self._vocabulary = vocabulary
        config = model.config.get_text_config()
        self._limit = int(getattr(config, "max_position_embeddings", 0) or 1 << 30)
        self._width = min(len(vocabulary.pieces), int(config.vocab_size))
        self._additive = config._attn_implementation == "eager"
        self._cache = SlotCache(max_sessions)
        self._slots: OrderedDict[str, _Slot] = OrderedDict()
        self._free = [_Slot(index) for index in reversed(range(max_sessions))]
        self._inbox: queue.SimpleQueue[_Job | str | None] = queue.SimpleQueue()
        self._waiting: list[_Job] = []
        self._running: list[_Job] = []
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._is_closed = False

    async def generate(self, ask: Ask) -> AsyncGenerator[Chunk]:
        """Continue a context of ids."""
        context = ask.context
        if isinstance(context, str):
            raise TypeError("context: got text; allowed: ids, because this model has a tokenizer")
        loop = asyncio.get_running_loop()
        chunks: asyncio.Queue[Chunk | BaseException] = asyncio.Queue()
        job = _Job(
            ask.session, list(context),
            lambda item: loop.call_soon_threadsafe(chunks.put_nowait, item), ask,
        )  # fmt: skip
        self._submit(job)
        try:
            while True:
                chunk = await chunks.get()
                if isinstance(chunk, BaseException):
                    raise chunk
                yield chunk
                if chunk.finish is not None:
                    return
        finally:
            job.is_cancelled = True

    async def log_probs(self, session: str, context: Context, ids: Sequence[int]) -> list[float]:
        """Log-probabilities of ``ids`` behind the context."""
        assert not isinstance(context, str)
        loop = asyncio.get_running_loop()
        found: asyncio.Queue[list[float] | BaseException] = asyncio.Queue()
        job = _Job(
            session, [*context, *ids][:-1],
            lambda item: loop.call_soon_threadsafe(found.put_nowait, item), scored=tuple(ids),
        )  # fmt: skip
        self._submit(job)
        try:
            values = await found.get()
        finally:
            job.is_cancelled = True
        if isinstance(values, BaseException):
            raise values
        return values

    async def release(self, session: str) -> None:
        """Give a session's slot back."""
        if not self._is_closed:
            self._inbox.put(session)

    async def close(self) -> None:
        """Stop the thread."""
        with self._lock:
            self._is_closed = True
            thread, self._thread = self._thread, None
        if thread is not None:
            self._inbox.put(None)
            await asyncio.to_thread(thread.join)

    def _submit(self, job: _Job) -> None:
        if len(job.ids) >= self._limit:
            allowed = f"below the model's {self._limit} positions"
            raise SpecError.of("prompt", f"{len(job.ids)} tokens", allowed)
        with self._lock:
            if self._is_closed:
                raise RuntimeError("this backend is closed")
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, daemon=True, name="tokenlens-hf")
                self._thread.start()
        self._inbox.put(job)

    # Everything below runs in the worker thread.

    @torch.inference_mode()
    def _work(self) -> None:
        while True:
            is_idle = not (self._running or self._waiting)
            try:
                while True:
                    item = self._inbox.get(block=is_idle)
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
                for job in self._running:
                    job.deliver(error)
                    assert job.slot is not None
                    job.slot.ids, job.slot.busy = [], False
                self._running = []

    def _admit(self) -> None:
        waiting, self._waiting = self._waiting, []
        for job in waiting:
            if job.is_cancelled:
                continue
            slot = self._slot(job.session)
            if slot is None:
                self._waiting.append(job)
                continue
            slot.busy, job.slot = True, slot
            # The last token is read again: its logits are what the next one is chosen from. Where
            # log-probabilities are wanted, so is everything that they come from.
            keep = _common(slot.ids, job.ids, len(job.ids) - max(1, len(job.scored)))
            del slot.ids[keep:]
            self._running.append(job)

    def _slot(self, session: str) -> _Slot | None:
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

    def _forget(self, session: str) -> None:
        slot = self._slots.get(session)
        if slot is not None and not slot.busy:
            del self._slots[session]
            slot.ids = []
            self._free.append(slot)

    def _tick(self) -> None:
        """One forward pass for rows that read one token, and one for those that read more."""
        for job in [job for job in self._running if job.is_cancelled]:
            self._end(job)
        short: list[_Job] = []
        long: list[_Job] = []
        scored: list[_Job] = []
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

    def _read(self, jobs: list[_Job]) -> None:
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

    def _sample(self, jobs: list[_Job], logits: Tensor) -> None:
        asks = [job.ask for job in jobs if job.ask is not None]
        how = [ask.sampling for ask in asks]
        tokens = hf_sampling.sample(logits, how, [len(job.ids) for job in jobs])
        curious = [row for row, job in enumerate(jobs) if asks[row].signals and job.made == 0]
        if curious:
            facts = hf_sampling.signals(logits[curious])
            for row, entropy, ids, values in zip(curious, *facts):
                texts = [self._vocabulary.piece(token) for token in ids]
                jobs[row].signals = Signals(tuple(zip(texts, values)), entropy)
        # The loop over steps ends on the host: this is the one read of a step.
        for job, ask, token in zip(jobs, asks, tokens.tolist()):
            self._push(job, ask, token)

    def _push(self, job: _Job, ask: Ask, token: int) -> None:
        job.made += 1
        job.ids.append(token)
        job.unsent.append(token)
        finish: Finish | None = None
        end = ask.matcher.push(token) if ask.matcher is not None else None
        if end == "eos" or (ask.matcher is None and token in self._vocabulary.eos_ids):
            finish = "eos"
        elif end is not None:
            finish = "stop"
        elif job.made >= ask.max_tokens or len(job.ids) >= self._limit:
            finish = "length"
        if finish is not None or ask.stream:
            job.deliver(Chunk(tuple(job.unsent), "", len(job.unsent), job.signals, finish))
            job.unsent, job.signals = [], None
        if finish is not None:
            self._end(job)

    def _score(self, job: _Job) -> None:
        assert job.slot is not None
        values: list[float] = []
        step = max(1, min(MAX_QUERIES, MAX_LOGITS // self._width))
        while len(job.slot.ids) < len(job.ids):
            chunk = job.ids[len(job.slot.ids) :][:step]
            logits = self._forward([job], [chunk], None)[0, :, : self._width].float()
            aim = torch.tensor(job.scored[len(values) :][: len(chunk)], device=logits.device)
            values += logits.log_softmax(-1).gather(1, aim[:, None])[:, 0].tolist()
            job.slot.ids += chunk
        job.deliver(values)
        self._end(job)

    def _end(self, job: _Job) -> None:
        assert job.slot is not None
        job.slot.busy = False
        self._running.remove(job)

    def _forward(
        self, jobs: list[_Job], chunks: list[list[int]], wanted: list[int] | None
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
            input_ids=ids, attention_mask=mask, position_ids=positions.clamp(max=self._limit - 1),
            past_key_values=self._cache, use_cache=True, **kept,
        )  # fmt: skip
        logits: Tensor = output.logits
        return logits if rows is None else logits[torch.tensor(rows, device=device)]


def _common(held: list[int], wanted: list[int], limit: int) -> int:
    """Length of the common beginning, at most ``limit``."""
    limit = max(0, min(limit, len(held)))
    if held[:limit] == wanted[:limit]:
        return limit
    return next(at for at in range(limit) if held[at] != wanted[at])


def _check(model: Any) -> None:
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        kinds.add("sliding_attention")
    if model.config.is_encoder_decoder or kinds != {"full_attention"}:
        raise SpecError.of(
            "model", f"{type(model).__name__} with {', '.join(sorted(kinds))}",
            "a causal language model with full attention in every layer, because drafts are taken"
            " back from its cache; others can be routed to through a server",
        )  # fmt: skip
    if config._attn_implementation not in ("sdpa", "eager"):
        raise SpecError.of("model", f"{config._attn_implementation} attention", "sdpa or eager")
