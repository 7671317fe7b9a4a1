"""Several servers of one model behind one run: who is asked, again when, and who is left out.

A server that fails several times in a row is left out for a while, then tried with one request; its
questions go to the others meanwhile. One that says nothing while it holds questions is asked for
its health, and left out if it has none. Knows no specs and no scores.
"""

import asyncio
import json
import os
import random
import ssl
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NoReturn, TypeVar

import httpx

from tokenlens.errors import AnswerError, NoTraceError, ServersError, TooLongError
from tokenlens.routing import reading
from tokenlens.routing.addresses import Address, read_address

T = TypeVar("T")
KEY_VARIABLE = "TOKENLENS_API_KEY"
OVERLOADED = 429
GONE = (408, 502, 503, 504)
"""A status of what stands before a server, or of one that is starting or ending."""
LONGEST_PAUSE = 60.0


class _FailedRequestError(Exception):
    """One request that failed; ``counts`` where the request itself may be to blame."""

    def __init__(self, says: str, *, counts: bool = True, busy: float | None = None) -> None:
        super().__init__(says)
        self.counts, self.busy = counts, busy


@dataclass(frozen=True)
class Patience:
    """How long a run waits, in seconds, and how often it asks again.

    Parameters
    ----------
    read, connect
        For an answer, and for a connection.
    attempts
        Requests for one question before the run gives it up.
    failures
        In a row, before a server is left out.
    cooldown
        Until a server that was left out is tried again.
    outage
        With no answer from anybody, before the run ends.
    backoff
        Before the second attempt; doubled for each later one.
    health
        Between questions for the health of a server that holds requests and says nothing.
    """

    read: float = 7200.0
    connect: float = 20.0
    attempts: int = 5
    failures: int = 3
    cooldown: float = 30.0
    outage: float = 600.0
    backoff: float = 0.5
    health: float = 20.0


@dataclass(eq=False)
class Server:
    """One server, and what is known of it."""

    url: str
    answered: int = 0
    failed: int = 0
    last_error: str = ""
    out_until: float = 0.0
    is_out: bool = False
    trial: bool = False
    heard: float = 0.0
    has_health: bool = True
    hung: bool = False
    calls: set["asyncio.Future[Any]"] = field(default_factory=set)


def checked_urls(urls: Sequence[str]) -> list[str]:
    """Addresses without ``/v1`` and final slashes.

    Raises
    ------
    ValueError
        One is none, holds a key, or is there twice; names it.
    """
    found: dict[Address, str] = {}
    for url in urls:
        address = read_address("base-url", url)
        base = url.rstrip("/").removesuffix("/v1").rstrip("/")
        if address in found:
            raise ValueError(f"base-url: got {base} twice; allowed: each server once")
        found[address] = base
    if not found:
        raise ValueError("base-url: got none; allowed: at least one address, http://HOST:PORT")
    return list(found.values())


def key_of(variable: str | None) -> str | None:
    """The API key in an environment variable; ``TOKENLENS_API_KEY`` where none is named.

    Raises
    ------
    ValueError
        A named variable is not set, or its value cannot be sent.
    """
    value = os.environ.get(variable or KEY_VARIABLE, "").strip()
    if variable and not value:
        raise ValueError(f"api-key-env: got {variable!r}, which is not set; allowed: one that is")
    if not value.isascii() or any(c.isspace() or not c.isprintable() for c in value):
        raise ValueError(
            f"{variable or KEY_VARIABLE}: got a key with spaces or letters beyond ASCII"
        )
    return value or None


class Servers:
    """Requests to several servers, from any thread, also where an event loop runs (a notebook)."""

    def __init__(
        self,
        urls: Sequence[str],
        *,
        concurrency: int = 32,
        api_key: str | None = None,
        patience: Patience | None = None,
    ) -> None:
        if concurrency < 1:
            raise ValueError(f"concurrency: got {concurrency}; allowed: at least 1")
        self.servers = [Server(url) for url in checked_urls(urls)]
        self.patience = patience or Patience()
        self._concurrency = concurrency
        self._headers = reading.HEADERS | (
            {"Authorization": f"Bearer {api_key}"} if api_key else {}
        )
        self._one_call = threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def ask_all(
        self,
        path: str,
        bodies: Sequence[Callable[[], Any]],
        read: Callable[[int, Any], T],
        done: Callable[[int, T], None],
    ) -> None:
        """Put every request to one of the servers, once it has answered once.

        Parameters
        ----------
        bodies
            Each makes the body of a request; ``read`` makes of the number of a request and its
            answer what ``done`` is told, and raises :class:`AnswerError` where it cannot.

        Raises
        ------
        ServersError
            Some requests have no answer; the others were handed to ``done``.
        """
        self._run(self._ask_all(path, bodies, read, done))

    def ask_each(self, path: str, body: Any = None) -> list[tuple[Server, Any]]:
        """What each server answers; those that cannot be reached are left out from the start.

        Raises
        ------
        ServersError
            None can be reached.
        """
        found: list[tuple[Server, Any]] = self._run(self._ask_each(path, body))
        return found

    def states(self) -> list[dict[str, Any]]:
        """Each server's address, answers, and why it is left out if it is; for people to read."""
        return [
            {"url": one.url, "answered": one.answered, "calls": len(one.calls)}
            | ({"left_out": one.last_error} if one.is_out else {})
            for one in self.servers
        ]

    def close(self) -> None:
        """End the connections."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(10)
            self._loop.close()

    def _run(self, work: Any) -> Any:
        with self._one_call:
            future: Future[Any] = asyncio.run_coroutine_threadsafe(self._within(work), self._loop)
            try:
                return future.result()
            except BaseException:
                # An interrupt leaves no request behind.
                future.cancel()
                raise

    async def _within(self, work: Awaitable[T]) -> T:
        """Some work, with connections that are closed behind it: not everybody calls close()."""
        waits = self.patience
        async with httpx.AsyncClient(
            timeout=httpx.Timeout(waits.read, connect=waits.connect, pool=None),
            limits=httpx.Limits(max_connections=None, keepalive_expiry=1.0),
            headers=self._headers,
            verify=ssl.create_default_context(),
            # A proxy of the environment is not between an evaluation and its servers.
            trust_env=False,
        ) as self._client:
            return await work

    async def _ask_each(self, path: str, body: Any) -> list[tuple[Server, Any]]:
        async def one(server: Server) -> tuple[Server, Any] | None:
            try:
                return server, await self._call(server, path, body)
            except _FailedRequestError as error:
                self._note(server, error)
                self._leave_out(server)
                return None

        found = await asyncio.gather(*(one(server) for server in self.servers))
        heard = [pair for pair in found if pair is not None]
        if not heard:
            self._give_up("no server can be reached")
        return heard

    async def _ask_all(
        self,
        path: str,
        bodies: Sequence[Callable[[], Any]],
        read: Callable[[int, Any], T],
        done: Callable[[int, T], None],
    ) -> None:
        waiting = deque(range(len(bodies)))
        lost: list[str] = []
        self._heard = time.monotonic()

        async def work() -> None:
            while waiting:
                row = waiting.popleft()
                try:
                    found = await self._answer(path, bodies[row](), partial(read, row))
                except _FailedRequestError as error:
                    # The others are asked all the same.
                    lost.append(str(error))
                    continue
                done(row, found)

        watching = asyncio.ensure_future(self._watch())
        workers = [
            asyncio.ensure_future(work()) for _ in range(min(self._concurrency, len(bodies)))
        ]
        try:
            await _all(workers)
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
        if lost:
            self._give_up(
                f"{len(lost)} of {len(bodies)} requests failed {self.patience.attempts} times each,"
                f" the first with: {lost[0]}"
            )

    async def _answer(self, path: str, body: Any, read: Callable[[Any], T]) -> T:
        counted = attempt = 0
        while True:
            server = await self._choose()
            try:
                data = await self._call(server, path, body)
                try:
                    found = read(data)
                except AnswerError as error:
                    raise _FailedRequestError(f"{server.url}: {error}") from None
                except NoTraceError as error:
                    raise ServersError(f"{server.url}: {error}") from None
            except _FailedRequestError as error:
                self._note(server, error)
                counted += error.counts
                if counted >= self.patience.attempts:
                    raise
                await self._pause(attempt, error.busy)
                attempt += 1
                continue
            finally:
                server.trial = False
            self._answered(server)
            return found

    async def _choose(self) -> Server:
        """The server with the fewest requests; waits where all are left out."""
        while True:
            now = time.monotonic()
            there = [one for one in self.servers if not one.is_out]
            due = [
                one for one in self.servers if one.is_out and not one.trial and one.out_until <= now
            ]
            if due and (not there or random.random() < 0.5):
                due[0].trial = True
                return due[0]
            if there:
                fewest = min(len(one.calls) for one in there)
                return random.choice([one for one in there if len(one.calls) == fewest])
            if now - self._heard > self.patience.outage:
                self._give_up(f"no server has answered for {self.patience.outage:g} s")
            await asyncio.sleep(min(0.2, self.patience.cooldown))

    async def _call(self, server: Server, path: str, body: Any) -> Any:
        task = asyncio.ensure_future(self._exchange(server, path, body))
        server.calls.add(task)
        try:
            return await task
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if not server.hung or (current is not None and current.cancelling()):
                raise
            raise _FailedRequestError(
                f"{server.url}: it holds requests and has no health", counts=False
            ) from None
        finally:
            server.calls.discard(task)

    async def _exchange(self, server: Server, path: str, body: Any) -> Any:
        url = server.url + path
        method = "GET" if body is None else "POST"
        try:
            async with self._client.stream(method, url, json=body) as response:
                status = response.status_code
                if status != 200:
                    self._status(server, path, response, await reading.error_text(response))
                return json.loads(await reading.body(response))
        except (TooLongError, ValueError, RecursionError) as error:
            raise _FailedRequestError(f"{url}: its answer is no JSON ({error!r:.200})") from None
        except httpx.ReadTimeout:
            raise _FailedRequestError(f"{url}: no answer within {self.patience.read:g} s") from None
        except httpx.RequestError as error:
            # One that breaks off in the middle may do so because of what it was asked.
            counts = not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
            says = f"{url}: {type(error).__name__} {error}".rstrip()
            raise _FailedRequestError(says, counts=counts) from None

    def _status(self, server: Server, path: str, response: httpx.Response, text: str) -> NoReturn:
        status = response.status_code
        says = f"{server.url}{path}: status {status}: {text[:2000]!r}"
        if status == OVERLOADED:
            raise _FailedRequestError(
                says, counts=False, busy=_seconds(response.headers.get("retry-after"))
            )
        if status in GONE:
            raise _FailedRequestError(says, counts=False)
        if status >= 500:
            raise _FailedRequestError(says)
        if status in (401, 403):
            raise ServersError(f"{says}. The key is read from the environment: {KEY_VARIABLE}")
        raise ServersError(says)

    def _answered(self, server: Server) -> None:
        server.answered += 1
        server.failed, server.is_out, server.hung = 0, False, False
        server.heard = self._heard = time.monotonic()

    def _note(self, server: Server, error: _FailedRequestError) -> None:
        if error.busy is not None:
            # It is alive.
            self._heard = time.monotonic()
            return
        server.last_error = str(error)
        server.failed += 1
        if server.failed >= self.patience.failures:
            self._leave_out(server)

    def _leave_out(self, server: Server) -> None:
        server.is_out, server.out_until = True, time.monotonic() + self.patience.cooldown

    async def _pause(self, attempt: int, busy: float | None) -> None:
        seconds = min(LONGEST_PAUSE, self.patience.backoff * 2**attempt)
        if busy:
            seconds = max(seconds, min(LONGEST_PAUSE, busy))
        await asyncio.sleep(seconds * random.uniform(0.5, 1.0))

    async def _watch(self) -> None:
        """Ask servers that hold requests and say nothing for their health."""
        sick: dict[Server, int] = {}
        while True:
            await asyncio.sleep(self.patience.health)
            now = time.monotonic()
            quiet = [
                one
                for one in self.servers
                if one.calls and one.has_health and now - one.heard > self.patience.health
            ]
            for server, healthy in zip(quiet, await asyncio.gather(*map(self._is_healthy, quiet))):
                sick[server] = 0 if healthy else sick.get(server, 0) + 1
                if sick[server] >= self.patience.failures:
                    server.last_error = f"{server.url}: it holds requests and has no health"
                    self._leave_out(server)
                    server.hung = True
                    for call in list(server.calls):
                        call.cancel()
                    await asyncio.sleep(0)
                    sick[server] = 0

    async def _is_healthy(self, server: Server) -> bool:
        try:
            answer = await self._client.get(server.url + "/health", timeout=self.patience.health)
        except httpx.RequestError:
            return False
        if answer.status_code == 404:
            server.has_health = False
        return answer.status_code in (200, 404)

    def _give_up(self, says: str) -> NoReturn:
        errors = "; ".join(one.last_error for one in self.servers if one.last_error)
        raise ServersError(
            f"{says}. What was answered is kept: the same command goes on."
            + (f" Last errors: {errors}" if errors else "")
        )


async def _all(tasks: Sequence[Awaitable[None]]) -> None:
    """Wait for all; the first error cancels the rest."""
    try:
        await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()  # type: ignore[attr-defined]
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


def _seconds(text: str | None) -> float:
    """What ``Retry-After`` says; 0 where it says nothing that can be read."""
    try:
        value = float(text or 0)
    except ValueError:
        return 0.0
    return value if 0 < value < float("inf") else 0.0
