"""An OpenAI-compatible completion server as a backend: patience, retries and the breaker.

The server's prefix cache does the catching up. Knows no policy.
"""

import asyncio
import contextlib
import json
import logging
import math
import random
import ssl
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import httpx
from pydantic import Field

from tokenlens.errors import BackendError, SpecError, TooLongError
from tokenlens.routing import reading
from tokenlens.routing.backend import Ask, Chunk, Context
from tokenlens.routing.breaker import Attempt, Breaker
from tokenlens.routing.carried import FIELDS, KEY, NO_TOKEN, PROBE, SpecField, written
from tokenlens.routing.completions import Api, Completions
from tokenlens.routing.facts import Ranked, Scale
from tokenlens.routing.generations import Generations
from tokenlens.routing.settings import Role, Sampling
from tokenlens.spec.base import StrictModel

logger = logging.getLogger(__name__)

MAX_FACTS = 256
"""Bytes of one token's id, or of one alternative with its log-probability."""
MAX_TOKEN = 32 << 10
"""Bytes that one token's event may have, on average."""
ENTRIES = 3
"""Largest entries that tell a server's scale, one more than its filter leaves."""
ASK_AGAIN = 60.0
"""Seconds until a server is asked again whether it carries specs out."""
LAST_BYTES = 5.0
"""Seconds for what follows the last event; then the connection is closed."""
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
    ca_file: str | None = Field(
        None, max_length=4096, description="certificates, as PEM, beside the usual authorities"
    )


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
        ``vllm``, ``sglang``: ids in and out; ``text``: text.
    on_error
        Is told the kind of every failure, also of those that a retry makes good.
    max_length
        Tokens of the model's context, where they are known.
    lead
        What the server puts before a text, where that is known; else what the tokenizer does.
    specs_in
        The field in which a server of its kind takes decoding specs.
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
        max_length: int | None = None,
        lead: str | None = None,
        specs_in: SpecField | None = None,
    ) -> None:
        self._role: Role = role
        self._model, self._url = model, url
        kind = Generations if api == "sglang" else Completions
        self._completions: Completions = kind(role, model, api, specs_in)
        self._scale: Scale | None = None
        self._trips_in = specs_in or FIELDS.get(api)
        self._probed: dict[str, tuple[float, bool]] = {}
        self._settings = settings or HTTPSettings()
        self._on_error = on_error
        self.breaker = Breaker(self._settings.failures, self._settings.cooldown)
        self.max_length, self.lead = max_length, lead
        self._client = client(url, self._settings, api_key)

    async def generate(self, ask: Ask) -> AsyncGenerator[Chunk]:
        """Continue a context; a call that breaks off is resumed behind what has come."""
        context, tokens_left, wants_signals = ask.context, ask.max_tokens, ask.signals
        for attempt in range(self._settings.retries + 1):
            call = await self._admit(wait=ask.last_resort and attempt == 0)
            try:
                body = self._completions.body(ask, context, tokens_left, signals=wants_signals)
                async with aclosing(self._stream(body, ask, wants_signals)) as chunks:
                    async for chunk in chunks:
                        self.breaker.answered(call)
                        tokens_left -= chunk.tokens
                        wants_signals = False
                        if isinstance(context, str):
                            context += chunk.text
                        else:
                            context = (*context, *chunk.ids)
                        if chunk.finish is not None:
                            # A connection whose answer was read to its end can be used again.
                            with contextlib.suppress(BackendError, TimeoutError):
                                async with asyncio.timeout(LAST_BYTES):
                                    async for _ in chunks:
                                        pass
                            yield chunk
                            return
                        if tokens_left < 0:
                            # More than was asked for: nobody waits for the end of that.
                            yield replace(chunk, finish="length")
                            return
                        yield chunk
                raise BackendError(self._role, "truncated", "its answer ends without a reason")
            except BackendError as error:
                self._failed(call, error)
                if error.kind not in RETRIED or attempt == self._settings.retries:
                    raise
                if tokens_left <= 0:
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
        body = self._completions.scoring(context, ids)
        for attempt in range(self._settings.retries + 1):
            call = await self._admit()
            try:
                answer = await self._post(body)
                try:
                    values = self._completions.scored(answer, ids)
                    if not all(math.isfinite(value) for value in values):
                        raise ValueError("a log-probability is no finite number")
                except (LookupError, TypeError, ValueError, OverflowError) as error:
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

    async def log_prob_scale(self) -> Scale:
        """Whether its log-probabilities are before the temperature, or behind it or the filters.

        Servers do not say it (vLLM: ``--logprobs-mode``; SGLang: ``SGLANG_RETURN_ORIGINAL_LOGPROB``
        and what else is in the batch), so it is asked for one token twice: at temperature 1, and at
        the largest that vLLM takes, with all but two tokens filtered. Their largest entries tell
        it. All but one would be a greedy request to SGLang, and raw where all of a batch are.

        Raises
        ------
        BackendError
            It does not answer.
        """
        if self._scale is None:
            plain, hot = [
                await self._first(Sampling(temperature=t, top_k=k)) for t, k in ((1.0, 0), (2.0, 2))
            ]
            pairs = list(zip(hot, plain))
            if len(hot) == len(plain) and all(abs(a[1] - b[1]) < 1e-3 for a, b in pairs):
                scale: Scale = "raw"
            elif len(hot) < ENTRIES or sum(math.exp(value) for _, value in hot[:2]) > 1 - 1e-6:
                scale = "processed"
            else:
                scale = "tempered"
            self._scale = self._completions.scale = scale
        return self._scale

    async def _first(self, how: Sampling) -> Ranked:
        """The most likely first tokens behind a prompt that every vocabulary has."""
        ask = Ask("scale", (0, 1), 1, how, facts=ENTRIES, stream=True)
        async with aclosing(self.generate(ask)) as chunks:
            async for chunk in chunks:
                if chunk.facts:
                    return chunk.facts[0].top
        return ()

    async def carries_specs(self) -> bool:
        """Whether the server carries decoding specs out.

        A server without tokenlens has the field as well and passes over what it holds.

        Raises
        ------
        BackendError
            It does not answer.
        """
        return await self._refuses(self._completions.specs_in, {"method": PROBE}, PROBE)

    @property
    def trips(self) -> bool:
        """Whether the server itself ends calls before a token, as far as it was asked."""
        return self._completions.trips_in is not None

    async def learn_trips(self) -> None:
        """Ask the server whether it has the method ``tripwire``, and its operator allows it.

        Raises
        ------
        BackendError
            It does not answer.
        """
        wrong = {"method": "tripwire", "token": NO_TOKEN}
        has = await self._refuses(self._trips_in, wrong, "tripwire.token")
        self._completions.trips_in = self._trips_in if has else None

    async def _refuses(self, field: SpecField | None, method: dict[str, Any], name: str) -> bool:
        """Whether the server refuses a wrong method by a name, as one that carries it out does."""
        if field is None:
            return False
        now = time.monotonic()
        asked, refuses = self._probed.get(name, (-math.inf, False))
        if now - asked > ASK_AGAIN:
            refuses = False
            try:
                await self._post(
                    self._completions.probing(written({KEY: {"methods": [method]}}, field))
                )
            except BackendError as error:
                if error.kind != "refused":
                    raise
                # Another reason to refuse, such as tokenlens that is not switched on, is no yes.
                refuses = name in error.detail
            self._probed[name] = now, refuses
        return refuses

    async def release(self, session: str) -> None:
        """Nothing: the server's prefix cache looks after itself."""

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _admit(self, *, wait: bool = False) -> Attempt:
        call = await self.breaker.admit(wait=wait)
        if call is None:
            raise BackendError(self._role, "open", "it failed several times and is left alone")
        return call

    def _failed(self, call: Attempt, error: BackendError) -> None:
        self._on_error(error.kind)
        # As a literal: what a server wrote may hold ends of lines and control characters.
        logger.warning("%s%s", error, f" ({error.detail!r})" if error.detail else "")
        if error.kind == "refused":
            # It answered.
            self.breaker.answered(call)
        else:
            self.breaker.failed(call, timed_out=error.kind == "timeout")

    async def _pause(self, attempt: int) -> None:
        await asyncio.sleep(self._settings.backoff * 2**attempt * random.uniform(0.5, 1.5))

    async def _stream(self, body: dict[str, Any], ask: Ask, signals: bool) -> AsyncGenerator[Chunk]:
        """Chunks of one answer; where probabilities are refused, and only count, without them."""
        try:
            async with aclosing(self._events(body, ask, signals)) as chunks:
                async for chunk in chunks:
                    yield chunk
            return
        except BackendError as error:
            if error.kind != "refused" or signals or "logprobs" not in body:
                raise
        del body["logprobs"]
        async with aclosing(self._events(body, ask, signals)) as chunks:
            async for chunk in chunks:
                self._completions.counts = False
                yield chunk

    async def _events(self, body: dict[str, Any], ask: Ask, signals: bool) -> AsyncGenerator[Chunk]:
        # vLLM repeats the prompt's ids, with at most ten characters each.
        longest = reading.MAX_LINE + 12 * len(ask.context)
        most = longest + MAX_TOKEN * ask.max_tokens
        if ask.whole and not isinstance(ask.context, str):
            # An event a token costs a server more than a small model's step.
            async with self._answer({**body, "stream": False}) as response:
                data = (await reading.body(response, most)).decode("utf-8", "replace")
            for chunk in self._completions.begin().chunks(data, ask, signals=signals):
                yield chunk
            return
        if self._completions.repeats:
            # Each event of SGLang's holds all that came before it.
            longest += MAX_FACTS * (1 + ask.facts) * ask.max_tokens
            most += longest * ask.max_tokens
        async with (
            self._answer(body) as response,
            aclosing(reading.lines(response, longest, most)) as lines,
        ):
            reads = self._completions.begin()
            async for line in lines:
                data = line[5:].strip()
                if not line.startswith("data:") or data == "[DONE]":
                    continue
                for chunk in reads.chunks(data, ask, signals=signals):
                    yield chunk

    async def _post(self, body: dict[str, Any]) -> Any:
        async with self._answer(body) as response:
            try:
                return json.loads(await reading.body(response))
            except (ValueError, RecursionError) as error:
                raise self._completions.malformed(error) from None

    @contextlib.asynccontextmanager
    async def _answer(self, body: dict[str, Any]) -> AsyncGenerator[httpx.Response]:
        """The server's answer to a call, whatever goes wrong with it as one kind of error."""

        def error(kind: str, says: str, error: Exception) -> BackendError:
            return BackendError(self._role, kind, says, detail=f"{self._url}: {error!r}")

        try:
            path = self._completions.path
            async with self._client.stream("POST", path, json=body) as response:
                if response.status_code != 200:
                    raise self._status(response.status_code, await reading.error_text(response))
                yield response
        except TooLongError as cause:
            raise self._completions.malformed(cause) from None
        except httpx.TimeoutException as cause:
            raise error("timeout", "its server says nothing", cause) from None
        except httpx.RemoteProtocolError as cause:
            raise error("truncated", "its server broke off", cause) from None
        except httpx.RequestError as cause:
            raise error("unreachable", "its server cannot be reached", cause) from None

    def _status(self, status: int, text: str) -> BackendError:
        kind = "failed" if status >= 500 else "overloaded" if status == 429 else "refused"
        return BackendError(
            self._role, kind, f"its server answers with status {status}", status,
            f"{self._url}: {text}",
        )  # fmt: skip


def trusted(ca_file: str | None) -> ssl.SSLContext:
    """Whom a server's certificate may be signed by: the usual authorities, and one's own.

    Raises
    ------
    SpecError
        The file cannot be read, or holds no certificate.
    """
    context = httpx.create_ssl_context(trust_env=False)
    if ca_file is not None:
        try:
            context.load_verify_locations(cafile=ca_file)
        except (OSError, ValueError) as error:
            allowed = f"a file with certificates as PEM ({error})"
            raise SpecError.of("ca_file", ca_file, allowed) from None
    return context


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
        headers=reading.HEADERS | ({"Authorization": f"Bearer {api_key}"} if api_key else {}),
        verify=trusted(settings.ca_file),
        # A proxy of the environment is not between a router and its models.
        trust_env=False,
    )
