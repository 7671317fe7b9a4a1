"""A Hugging Face model as a backend: one worker thread that batches whatever is asked of it.

Both models of a router are backends of their own, with a thread and caches of their own: neither
waits for the other. A session's cache is a slot and the ids that it holds; every call gives the
whole context, and what differs from there on is forgotten and read again. The caches are thereby
in step by ids, whoever wrote them.
"""

import asyncio
import threading
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from typing import Any

from tokenlens.errors import SpecError
from tokenlens.routing.backend import Ask, Chunk, Context
from tokenlens.routing.facts import Scale
from tokenlens.routing.hf_sampling import resolved
from tokenlens.routing.hf_worker import Job, Worker
from tokenlens.routing.vocabulary import RouterVocabulary


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
    trips = True

    def __init__(self, model: Any, vocabulary: RouterVocabulary, *, max_sessions: int = 64) -> None:
        check_attention(
            model, "drafts are taken back from its cache; others can be routed to through a server"
        )
        self._config = getattr(model, "generation_config", None)
        self._worker = Worker(model.eval(), vocabulary, max_sessions)
        self.max_length = self._worker.limit
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
        ask = replace(ask, sampling=resolved(ask.sampling, self._config))
        job = Job(
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
        values: list[float] = await self._scored(session, context, ids)
        return values

    async def entropies(self, session: str, context: Context, ids: Sequence[int]) -> list[float]:
        """Entropies, in nats, of the distributions that ``ids`` are chosen from."""
        _, nats = await self._scored(session, context, ids, entropies=True)
        return list(nats)

    async def log_prob_scale(self) -> Scale:
        """Raw, at every temperature."""
        return "raw"

    async def _scored(
        self, session: str, context: Context, ids: Sequence[int], *, entropies: bool = False
    ) -> Any:
        assert not isinstance(context, str)
        loop = asyncio.get_running_loop()
        found: asyncio.Queue[Any] = asyncio.Queue()
        job = Job(
            session, [*context, *ids][:-1],
            lambda item: loop.call_soon_threadsafe(found.put_nowait, item), scored=tuple(ids),
            entropies=entropies,
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
            self._worker.inbox.put(session)

    async def close(self) -> None:
        """Stop the thread."""
        with self._lock:
            self._is_closed = True
            thread, self._thread = self._thread, None
        if thread is not None:
            self._worker.inbox.put(None)
            await asyncio.to_thread(thread.join)

    def _submit(self, job: Job) -> None:
        if len(job.ids) >= self._worker.limit:
            allowed = f"below the model's {self._worker.limit} positions"
            raise SpecError.of("prompt", f"{len(job.ids)} tokens", allowed)
        with self._lock:
            if self._is_closed:
                raise RuntimeError("this backend is closed")
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._worker.run, daemon=True, name="tokenlens-hf"
                )
                self._thread.start()
        self._worker.inbox.put(job)


def check_attention(model: Any, reason: str) -> None:
    """Refuse a model with other attention than full ``sdpa`` or ``eager`` in every layer.

    Raises
    ------
    SpecError
    """
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        kinds.add("sliding_attention")
    if model.config.is_encoder_decoder or kinds != {"full_attention"}:
        raise SpecError.of(
            "model", f"{type(model).__name__} with {', '.join(sorted(kinds))}",
            f"a causal language model with full attention in every layer, because {reason}",
        )  # fmt: skip
    if config._attn_implementation not in ("sdpa", "eager"):
        raise SpecError.of("model", f"{config._attn_implementation} attention", "sdpa or eager")
