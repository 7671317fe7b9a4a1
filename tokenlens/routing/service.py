"""Requests on their way through a router: queue, prompts, time limit. Knows no HTTP."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from pydantic import Field

from tokenlens.routing.backend import Context
from tokenlens.routing.breaker import Breaker
from tokenlens.routing.metrics import Metrics
from tokenlens.routing.protocol import Base, ChatRequest, CompletionRequest
from tokenlens.routing.router import Routed, Router
from tokenlens.routing.settings import ROLES, Role
from tokenlens.routing.vocabulary import Vocabulary
from tokenlens.spec import SpecError
from tokenlens.spec.base import StrictModel


class ServerSettings(StrictModel):
    """Bounds of the server."""

    max_running: int = Field(64, ge=1, le=10_000, description="requests in the loop")
    max_waiting: int = Field(256, ge=0, le=100_000, description="in the queue; more are a 429")
    request_timeout: float = Field(600.0, gt=0, le=86_400, description="seconds, queue included")
    model_name: str = Field("tokenlens-route", min_length=1, max_length=200)


class QueueFullError(RuntimeError):
    """As many requests wait as may."""


class Queue:
    """Lets so many in, has so many wait, and turns the rest away."""

    def __init__(self, settings: ServerSettings, metrics: Metrics) -> None:
        self._places = asyncio.Semaphore(settings.max_running)
        self._max_waiting, self._waiting = settings.max_waiting, 0
        self._metrics = metrics

    @contextlib.asynccontextmanager
    async def place(self) -> AsyncGenerator[None]:
        """A place in the loop."""
        if self._places.locked() and self._waiting >= self._max_waiting:
            raise QueueFullError(f"{self._waiting} requests are waiting already; try again later")
        self._waiting += 1
        self._metrics.waiting.inc()
        try:
            await self._places.acquire()
        finally:
            self._waiting -= 1
            self._metrics.waiting.dec()
        self._metrics.running.inc()
        try:
            yield
        finally:
            self._metrics.running.dec()
            self._places.release()


class Service:
    """Requests through one router."""

    def __init__(
        self,
        router: Router,
        settings: ServerSettings,
        metrics: Metrics,
        templates: Mapping[Role, Vocabulary | None],
    ) -> None:
        self.router, self.settings, self.metrics = router, settings, metrics
        self._templates = templates
        self._queue = Queue(settings, metrics)

    @property
    def breakers(self) -> dict[Role, Breaker]:
        """Of the backends that have one."""
        found = {role: getattr(self.router.backends[role], "breaker", None) for role in ROLES}
        return {role: breaker for role, breaker in found.items() if breaker is not None}

    def prompts(self, body: ChatRequest | CompletionRequest) -> dict[Role, Context]:
        """The prompt as each model reads it.

        Raises
        ------
        SpecError
            A chat for a model whose tokenizer is not known, or ids where text is handed over.
        """
        prompts: dict[Role, Context] = {}
        for role in ROLES:
            words = self._templates[role]
            if isinstance(body, ChatRequest):
                if words is None:
                    allowed = f"with a tokenizer: start the router with --{role}-tokenizer"
                    raise SpecError.of("messages", f"a chat for the {role} model", allowed)
                messages = [message.model_dump(exclude_none=True) for message in body.messages]
                ids = tuple(words.chat(messages, **body.chat_template_kwargs))
                prompts[role] = ids if self.takes_ids(role) else words.decode(ids)
            elif isinstance(body.prompt, str):
                own = words is not None and self.takes_ids(role)
                prompts[role] = tuple(words.encode(body.prompt)) if words and own else body.prompt
            elif self.router.handover == "ids":
                prompts[role] = tuple(body.prompt)
            else:
                allowed = "text, because the two models have different tokenizers"
                raise SpecError.of("prompt", "token ids", allowed)
        return prompts

    def tokens(self, prompt: Context) -> int:
        """Length of the large model's prompt; 0 where nobody here can count it."""
        words = self._templates["large"]
        if isinstance(prompt, str):
            return len(words.encode(prompt)) if words is not None else 0
        return len(prompt)

    def takes_ids(self, role: Role) -> bool:
        """Whether a model is given ids."""
        return self.router.vocabularies[role] is not None

    async def run(self, body: Base, prompts: Mapping[Role, Context], emit: Any = None) -> Routed:
        """One request from the queue to its end."""
        began, outcome = time.monotonic(), "failed"
        try:
            async with asyncio.timeout(self.settings.request_timeout), self._queue.place():
                routed = await self.router.run(
                    prompts, sampling=body.sampling(), max_tokens=body.limit, emit=emit
                )
            outcome = "done"
            return routed
        except QueueFullError:
            outcome = "rejected"
            raise
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        finally:
            self.metrics.requests.labels(outcome).inc()
            self.metrics.seconds.observe(time.monotonic() - began)
