"""An OpenAI-compatible completion server as a backend.

vLLM takes and gives token ids. Any other server (SGLang, ...) takes and gives text: it is streamed,
and the stream is closed where the step ends, because their answers do not say whether a stop string
or the end of the text came. The server's prefix cache does the catching up. Knows no policy.
"""

import asyncio
import json
import math
import random
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Literal

import httpx
from pydantic import Field

from tokenlens.routing.backend import Ask, BackendError, Chunk, Context
from tokenlens.routing.breaker import Breaker
from tokenlens.routing.settings import Role
from tokenlens.routing.signals import TOP, Signals
from tokenlens.spec.base import StrictModel

Api = Literal["vllm", "text"]

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
        self._api = api
        self._settings = settings or HTTPSettings()
        self._on_error = on_error
        self.breaker = Breaker(self._settings.failures, self._settings.cooldown)
        self._client = client(url, self._settings, api_key)

    async def generate(self, ask: Ask) -> AsyncGenerator[Chunk]:
        """Continue a context; a call that breaks off is resumed behind what has come."""
        done = 0
        context, room, wants_signals = ask.context, ask.max_tokens, ask.signals
        for attempt in range(self._settings.retries + 1):
            self._admit()
            try:
                body = self._body(ask, context, room, wants_signals)
                async with aclosing(self._stream(body, wants_signals)) as chunks:
                    async for chunk in chunks:
                        self.breaker.succeeded()
                        done += chunk.tokens
                        room -= chunk.tokens
                        wants_signals = False
                        if isinstance(context, str):
                            context += chunk.text
                        else:
                            context = (*context, *chunk.ids)
                        yield chunk
                        if chunk.finish is not None:
                            return
                raise BackendError(self._role, "truncated", "its answer ends without a reason")
            except BackendError as error:
                self._failed(error)
                if error.kind not in RETRIED or attempt == self._settings.retries:
                    raise
                if room <= 0:
                    yield Chunk(finish="length")
                    return
                await self._pause(attempt)
            except (asyncio.CancelledError, GeneratorExit):
                self.breaker.cancelled()
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
            self._admit()
            try:
                answer = await self._post(body)
                try:
                    entries = answer["choices"][0]["prompt_logprobs"][-len(ids) :]
                    values = [float(e[str(i)]["logprob"]) for e, i in zip(entries, ids)]
                except (KeyError, IndexError, TypeError, ValueError) as error:
                    raise self._malformed(error) from None
                self.breaker.succeeded()
                return values
            except BackendError as error:
                self._failed(error)
                if error.kind not in RETRIED or attempt == self._settings.retries:
                    raise
                await self._pause(attempt)
            except asyncio.CancelledError:
                self.breaker.cancelled()
                raise
        raise AssertionError

    async def release(self, session: str) -> None:
        """Nothing: the server's prefix cache looks after itself."""

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    def _admit(self) -> None:
        if not self.breaker.may_call():
            raise BackendError(self._role, "open", "it failed several times and is left alone")

    def _failed(self, error: BackendError) -> None:
        self._on_error(error.kind)
        if error.kind == "refused":
            # It answered.
            self.breaker.succeeded()
        elif error.kind != "open":
            self.breaker.failed()

    async def _pause(self, attempt: int) -> None:
        await asyncio.sleep(self._settings.backoff * 2**attempt * random.uniform(0.5, 1.5))

    def _body(self, ask: Ask, context: Context, room: int, signals: bool) -> dict[str, Any]:
        how = ask.sampling
        body: dict[str, Any] = {
            "model": self._model,
            "prompt": context if isinstance(context, str) else list(context),
            "max_tokens": room,
            "temperature": how.temperature,
            "top_p": how.top_p,
            "seed": ask.engine_seed,
            "stream": True,
        }
        if signals:
            body["logprobs"] = TOP if self._api == "vllm" else 5
        elif self._api == "text":
            # Their tokens are counted by it.
            body["logprobs"] = 1
        if self._api == "vllm":
            body.update(
                return_token_ids=True,
                skip_special_tokens=False,
                spaces_between_special_tokens=False,
                include_stop_str_in_output=True,
                add_special_tokens=False,
                stop=list(ask.ends.texts) if ask.ends is not None else [],
            )
        if how.top_k:
            body["top_k"] = how.top_k
        return body

    async def _stream(self, body: dict[str, Any], signals: bool) -> AsyncGenerator[Chunk]:
        try:
            async with self._client.stream("POST", "completions", json=body) as response:
                if response.status_code != 200:
                    raise self._status(response.status_code, (await response.aread())[:2000])
                async for line in response.aiter_lines():
                    if len(line) > MAX_LINE:
                        raise self._malformed("an event of more than a million characters")
                    if not line.startswith("data:"):
                        continue
                    data = line[5:].strip()
                    if data == "[DONE]":
                        return
                    for chunk in self._chunks(data, signals):
                        yield chunk
        except httpx.TimeoutException as error:
            raise BackendError(self._role, "timeout", type(error).__name__) from None
        except httpx.RemoteProtocolError as error:
            raise BackendError(self._role, "truncated", str(error)) from None
        except httpx.TransportError as error:
            raise BackendError(self._role, "unreachable", repr(error)) from None

    async def _post(self, body: dict[str, Any]) -> Any:
        try:
            response = await self._client.post("completions", json=body)
            if response.status_code != 200:
                raise self._status(response.status_code, response.content[:2000])
            return response.json()
        except httpx.TimeoutException as error:
            raise BackendError(self._role, "timeout", type(error).__name__) from None
        except httpx.TransportError as error:
            raise BackendError(self._role, "unreachable", repr(error)) from None
        except ValueError as error:
            raise self._malformed(error) from None

    def _status(self, status: int, content: bytes) -> BackendError:
        kind = "failed" if status >= 500 else "overloaded" if status == 429 else "refused"
        text = content.decode("utf-8", "replace")
        return BackendError(self._role, kind, f"status {status}: {text}", status)

    def _malformed(self, what: object) -> BackendError:
        return BackendError(self._role, "malformed", f"not what a completion looks like: {what}")

    def _chunks(self, data: str, signals: bool) -> list[Chunk]:
        try:
            event = json.loads(data)
            if "error" in event:
                raise BackendError(self._role, "failed", str(event["error"])[:500])
            if not event["choices"]:
                return []
            choice = event["choices"][0]
            text, reason = choice["text"] or "", choice["finish_reason"]
            facts = choice.get("logprobs")
            ids: tuple[int, ...] = ()
            words = [text] if text else []
            if self._api == "vllm":
                ids = tuple(int(i) for i in choice["token_ids"] or ())
                count = len(ids)
            else:
                words = (facts and [str(word) for word in facts["tokens"]]) or words
                count = len(words)
            top = self._top(facts["top_logprobs"][0]) if signals and facts and count else None
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise self._malformed(f"{type(error).__name__}: {error}") from None
        finish: Any = {"length": "length", None: None}.get(reason, "stop")
        if finish == "stop" and choice.get("stop_reason", choice.get("matched_stop")) is None:
            # No stop string: the end of the text.
            finish = "eos"
        if not count and not text and finish is None:
            return []
        if len(words) < 2 or "".join(words) != text:
            return [Chunk(ids, text, count, top, finish)]
        # One by one, so that what lies behind the end of a step is not counted.
        chunks = [Chunk((), word, 1) for word in words]
        chunks[0] = replace(chunks[0], signals=top)
        chunks[-1] = replace(chunks[-1], finish=finish)
        return chunks

    def _top(self, entries: dict[str, Any]) -> Signals:
        pairs = sorted(((t, float(v)) for t, v in entries.items()), key=lambda pair: -pair[1])
        # vLLM adds the sampled token to the largest ones.
        return Signals(tuple((t, v) for t, v in pairs[:TOP] if not math.isnan(v)))


def client(url: str, settings: HTTPSettings, api_key: str | None) -> httpx.AsyncClient:
    """A client whose paths are below ``/v1/``."""
    base = url.rstrip("/").removesuffix("/v1") + "/v1/"
    return httpx.AsyncClient(
        base_url=base,
        timeout=httpx.Timeout(
            settings.read_timeout, connect=settings.connect_timeout, pool=settings.read_timeout
        ),
        limits=httpx.Limits(max_connections=settings.connections),
        headers={"Authorization": f"Bearer {api_key}"} if api_key else None,
        # A proxy of the environment is not between a router and its models.
        trust_env=False,
    )
