"""An OpenAI-compatible completion server as a backend: patience, retries and the breaker.

The server's prefix cache does the catching up. Knows no policy.
"""

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Any

import httpx
from pydantic import Field

from tokenlens.routing.backend import Ask, BackendError, Chunk, Context
from tokenlens.routing.breaker import Breaker, Call
from tokenlens.routing.completions import Api, Completions
from tokenlens.routing.settings import Role
from tokenlens.spec.base import StrictModel

MAX_LINE = 1 << 20
"""Characters of one event of a stream."""
RETRIED = frozenset({"unreachable", "timeout", "overloaded", "failed", "truncated", "malformed"})


class HTTPSettings(StrictModel):
    """Patience with a server, in seconds where nothing else is said."""

    connect_timeout: float = Field(5.0, gt=0, le=600)
    read_timeout: float = Field(60.0, gt=0, le=3600, description="between two pieces of a stream")
    retries: int = Field(2, ge=0, le=10, description="of one call, by the pieces that are missing")
    backoff: float = Field(0.2, ge=0, le=60, description="doubled each time, with jitter")
    failures: int = Field(3, ge=1, le=1000, description="in a row, until the breaker opens")
    cooldown: float = Field(5.0, gt=0, le=3600, description="until it asks again")
    connections: int = Field(256, ge=1, le=10_000)


class HTTPBackend:
    """One server.

    Parameters
    ----------
    role
        For errors.
    url
        With or without ``/v1``.
    model
        The served model's name.
    api
        ``vllm``: ids in and out; ``text``: text.
    on_error
        Is told the kind of every failure, also of those that a retry makes good.
    """

    gives_full_entropy = False

    def __init__(
        self,
        role: Role,
        url: str,
        model: str,
        *,
        api: Api,
        settings: HTTPSettings | None = None,
        api_key: str | None = None,
        on_error: Callable[[str], None] = lambda kind: None,
    ) -> None:
        self._role: Role = role
        self._model = model
        self._completions = Completions(role, model, api)
        self._settings = settings or HTTPSettings()
        self._on_error = on_error
        self.breaker = Breaker(self._settings.failures, self._settings.cooldown)
        self._client = client(url, self._settings, api_key)

    async def generate(self, ask: Ask) -> AsyncGenerator[Chunk]:
        """Continue a context; a call that breaks off is resumed behind what has come."""
        context, room, wants_signals = ask.context, ask.max_tokens, ask.signals
        for attempt in range(self._settings.retries + 1):
            call = await self._admit(wait=ask.last_resort and attempt == 0)
            try:
                body = self._completions.body(ask, context, room, signals=wants_signals)
                async with aclosing(self._stream(body, wants_signals)) as chunks:
                    async for chunk in chunks:
                        self.breaker.answered(call)
                        room -= chunk.tokens
                        wants_signals = False
                        if isinstance(context, str):
                            context += chunk.text
                        else:
                            context = (*context, *chunk.ids)
                        if chunk.finish is not None:
                            # A connection whose answer was read to its end can be used again.
                            with contextlib.suppress(BackendError):
                                async for _ in chunks:
                                    pass
                            yield chunk
                            return
                        yield chunk
                raise BackendError(self._role, "truncated", "its answer ends without a reason")
            except BackendError as error:
                self._failed(call, error)
                if error.kind not in RETRIED or attempt == self._settings.retries:
                    raise
                if room <= 0:
                    yield Chunk(finish="length")
                    return
                await self._pause(attempt)
            except BaseException:
                self.breaker.cancelled(call)
                raise

    async def log_probs(self, session: str, context: Context, ids: Sequence[int]) -> list[float]:
        """What the server thinks of ``ids``: it is asked to echo them with their probabilities."""
        if isinstance(context, str):
            raise NotImplementedError(
                "this server takes text; probabilities of a draft need vLLM's token ids"
            )
        body = {
            "model": self._model, "prompt": [*context, *ids], "max_tokens": 1, "temperature": 0,
            "prompt_logprobs": 0,
        }  # fmt: skip
        for attempt in range(self._settings.retries + 1):
            call = await self._admit()
            try:
                answer = await self._post(body)
                try:
                    entries = answer["choices"][0]["prompt_logprobs"][-len(ids) :]
                    values = [float(e[str(i)]["logprob"]) for e, i in zip(entries, ids)]
                except (KeyError, IndexError, TypeError, ValueError) as error:
                    raise self._completions.malformed(error) from None
                self.breaker.answered(call)
                return values
            except BackendError as error:
                self._failed(call, error)
                if error.kind not in RETRIED or attempt == self._settings.retries:
                    raise
                await self._pause(attempt)
            except BaseException:
                self.breaker.cancelled(call)
                raise
        raise AssertionError

    async def release(self, session: str) -> None:
        """Nothing: the server's prefix cache looks after itself."""

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _admit(self, *, wait: bool = False) -> Call:
        call = await self.breaker.admit(wait=wait)
        if call is None:
            raise BackendError(self._role, "open", "it failed several times and is left alone")
        return call

    def _failed(self, call: Call, error: BackendError) -> None:
        self._on_error(error.kind)
        if error.kind == "refused":
            # It answered.
            self.breaker.answered(call)
        else:
            self.breaker.failed(call, timed_out=error.kind == "timeout")

    async def _pause(self, attempt: int) -> None:
        await asyncio.sleep(self._settings.backoff * 2**attempt * random.uniform(0.5, 1.5))

    async def _stream(self, body: dict[str, Any], signals: bool) -> AsyncGenerator[Chunk]:
        """Chunks of one answer; where probabilities are refused, and only count, without them."""
        try:
            async with aclosing(self._events(body, signals)) as chunks:
                async for chunk in chunks:
                    yield chunk
            return
        except BackendError as error:
            if error.kind != "refused" or signals or "logprobs" not in body:
                raise
        del body["logprobs"]
        async with aclosing(self._events(body, signals)) as chunks:
            async for chunk in chunks:
                self._completions.counts = False
                yield chunk

    async def _events(self, body: dict[str, Any], signals: bool) -> AsyncGenerator[Chunk]:
        try:
            async with self._client.stream("POST", "completions", json=body) as response:
                if response.status_code != 200:
                    raise self._status(response.status_code, (await response.aread())[:2000])
                async for line in response.aiter_lines():
                    if len(line) > MAX_LINE:
                        raise self._completions.malformed(
                            "an event of more than a million characters"
                        )
                    if not line.startswith("data:"):
                        continue
                    data = line[5:].strip()
                    if data == "[DONE]":
                        continue
                    for chunk in self._completions.chunks(data, signals):
                        yield chunk
        except httpx.TimeoutException as error:
            raise BackendError(self._role, "timeout", type(error).__name__) from None
        except httpx.RemoteProtocolError as error:
            raise BackendError(self._role, "truncated", str(error)) from None
        except httpx.RequestError as error:
            raise BackendError(self._role, "unreachable", repr(error)) from None

    async def _post(self, body: dict[str, Any]) -> Any:
        try:
            response = await self._client.post("completions", json=body)
            if response.status_code != 200:
                raise self._status(response.status_code, response.content[:2000])
            return response.json()
        except httpx.TimeoutException as error:
            raise BackendError(self._role, "timeout", type(error).__name__) from None
        except httpx.RequestError as error:
            raise BackendError(self._role, "unreachable", repr(error)) from None
        except ValueError as error:
            raise self._completions.malformed(error) from None

    def _status(self, status: int, content: bytes) -> BackendError:
        kind = "failed" if status >= 500 else "overloaded" if status == 429 else "refused"
        text = content.decode("utf-8", "replace")
        return BackendError(self._role, kind, f"status {status}: {text}", status)


def client(url: str, settings: HTTPSettings, api_key: str | None) -> httpx.AsyncClient:
    """A client whose paths are below ``/v1/``."""
    base = url.rstrip("/").removesuffix("/v1") + "/v1/"
    return httpx.AsyncClient(
        base_url=base,
        timeout=httpx.Timeout(
            settings.read_timeout, connect=settings.connect_timeout, pool=settings.read_timeout
        ),
        # Servers close connections that are idle for some seconds (uvicorn: 5): not used then.
        limits=httpx.Limits(max_connections=settings.connections, keepalive_expiry=1.0),
        headers={"Authorization": f"Bearer {api_key}"} if api_key else None,
        # A proxy of the environment is not between a router and its models.
        trust_env=False,
    )
