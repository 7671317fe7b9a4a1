"""Requests on their way through a router: queue, prompts, time limit. Knows no HTTP."""

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncGenerator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from tokenlens.errors import QueueFullError, SpecError
from tokenlens.routing.breaker import Breaker
from tokenlens.routing.incoming import MAX_BODY
from tokenlens.routing.metrics import Metrics
from tokenlens.routing.prompts import RouterPrompts
from tokenlens.routing.protocol import ChatRequest, CompletionRequest
from tokenlens.routing.router import Loop, Routed
from tokenlens.routing.settings import Role
from tokenlens.routing.vocabulary import RouterVocabulary
from tokenlens.spec.base import StrictModel

NAME = re.compile(r"://|[/@\s,*]|^[^:]*:\d*$")
Name = Annotated[str, Field(min_length=1, max_length=256)]


class ServerSettings(StrictModel):
    """Bounds of the server."""

    max_running: int = Field(64, ge=1, le=10_000, description="requests in the loop")
    max_waiting: int = Field(256, ge=0, le=100_000, description="in the queue; more are a 429")
    request_timeout: float = Field(600.0, gt=0, le=86_400, description="seconds, queue included")
    model_name: str = Field("tokenlens-route", min_length=1, max_length=200)
    prompt_threads: int = Field(2, ge=1, le=64, description="that write and read prompts")
    max_body: int | None = Field(
        None, ge=1024, le=1 << 30, description="bytes; by the shortest context if not given"
    )
    max_held: int = Field(
        1 << 29, ge=1 << 20, le=1 << 40, description="bytes of all bodies at once; more are a 503"
    )
    body_timeout: float = Field(30.0, gt=0, le=3600, description="seconds until a body is here")
    header_timeout: float = Field(10.0, gt=0, le=3600, description="seconds until headers are")
    send_timeout: float = Field(60.0, gt=0, le=3600, description="seconds until it reads on")
    max_connections: int = Field(4096, ge=1, le=1_000_000, description="open at once")
    cors_origins: tuple[Name, ...] = Field((), description="pages that may ask; none")
    allowed_hosts: tuple[Name, ...] = Field((), description="names of this server; * is any")
    metrics: Literal["open", "key", "off"] = Field("open", description="who may read /metrics")

    @field_validator("cors_origins", "allowed_hosts", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        # From a command line or a file: one text, or a list of them.
        return (value,) if isinstance(value, str) else tuple(value)

    @field_validator("allowed_hosts")
    @classmethod
    def _names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        # As a browser sends them: one that is written otherwise would never be met.
        for name in value:
            if name != "*" and NAME.search(name):
                raise ValueError(f"{name!r} is no name: allowed: one without scheme, port and path")
        return tuple(name if name.isascii() else name.encode("idna").decode() for name in value)

    def body_bytes(self, context: int | None) -> int:
        """Bytes that a body may have, by what the models can read of it."""
        if self.max_body is not None:
            return self.max_body
        # A token of 64 bytes: ten letters, each written as an escape.
        return MAX_BODY if context is None else min(MAX_BODY, max(1 << 20, 64 * context))


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
        router: Loop,
        settings: ServerSettings,
        metrics: Metrics,
        templates: Mapping[Role, RouterVocabulary | None],
    ) -> None:
        self.router, self.settings, self.metrics = router, settings, metrics
        self.prompts = RouterPrompts(router, templates, settings.prompt_threads)
        self._queue = Queue(settings, metrics)

    @property
    def breakers(self) -> dict[Role, Breaker]:
        """Of the backends that have one."""
        backends = self.router.backends
        found = {role: getattr(one, "breaker", None) for role, one in backends.items()}
        return {role: breaker for role, breaker in found.items() if breaker is not None}

    async def run(
        self, body: ChatRequest | CompletionRequest, emit: Any = None
    ) -> tuple[Routed, int]:
        """One request from the queue to its end: its text, and the length of its prompt.

        What can be refused at no cost was (:meth:`RouterPrompts.check`); the prompt is written and
        read once there is a place, so that no more of that is under way than requests may run.
        """
        began, outcome = time.monotonic(), "failed"
        try:
            async with asyncio.timeout(self.settings.request_timeout), self._queue.place():
                arguments = body.arguments()
                if arguments:
                    await self._check_carried(arguments)
                prepared = await self.prompts.prepare(body)
                routed = await self.router.run(
                    prepared.prompts,
                    sampling=body.sampling(),
                    max_tokens=body.limit,
                    emit=emit,
                    arguments=arguments,
                    **self.steering(body),
                )
            outcome = "done"
            return routed, prepared.tokens
        except QueueFullError:
            outcome = "rejected"
            raise
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        finally:
            self.metrics.requests.labels(outcome).inc()
            self.metrics.seconds.observe(time.monotonic() - began)

    def steering(self, body: ChatRequest | CompletionRequest) -> dict[str, Any]:
        """What a request asks of a controller, for its run.

        Raises
        ------
        SpecError
            There is none, or it cannot do that.
        """
        if body.controller is None:
            return {}
        steering = getattr(self.router, "steering", None)
        if steering is None:
            allowed = "leave it out: this server routes between two models, and steers no request"
            raise SpecError.of("controller", "a controller", allowed)
        return {"spec": steering(body.controller)}

    async def _check_carried(self, arguments: Mapping[str, Any]) -> None:
        """Refuse a spec that one of the servers would pass over."""
        for role, backend in self.router.backends.items():
            carries = getattr(backend, "carries_specs", None)
            if carries is None or not await carries():
                allowed = (
                    f"leave it out: the {role} model's server does not carry specs out (vLLM and"
                    " SGLang do once they are started with tokenlens)"
                )
                raise SpecError.of("vllm_xargs or custom_params", sorted(arguments), allowed)
