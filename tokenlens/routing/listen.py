"""The server's socket: connections that say nothing, or half of a request, are closed in time."""

import asyncio
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from tokenlens.routing.service import ServerSettings

MAX_HEADERS = 64 << 10
"""Bytes of one request's line and headers."""
KEEP_ALIVE = 5
"""Seconds of silence behind a request."""


def protocol(header_seconds: float, send_seconds: float) -> type[H11Protocol]:
    """uvicorn's protocol with two times of its own; a body's time is the application's.

    Parameters
    ----------
    header_seconds
        From a connection's beginning, or the first byte behind another request, to the end of the
        headers. What says nothing behind a request is closed by uvicorn's own keep-alive.
    send_seconds
        For a client to read on, once it is so far behind that nothing more is written.
    """

    class Timed(H11Protocol):
        _headers: asyncio.TimerHandle | None = None
        _reading: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._expect_headers()

        def data_received(self, data: bytes) -> None:
            before = self.cycle
            super().data_received(data)
            if self.cycle is not before:
                self._headers = _ended(self._headers)
            else:
                self._expect_headers()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self.conn.trailing_data[0]:
                # The next request began while this one was answered.
                self._expect_headers()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._reading = self.loop.call_later(send_seconds, self.transport.abort)

        def resume_writing(self) -> None:
            self._reading = _ended(self._reading)
            super().resume_writing()

        def connection_lost(self, exc: Exception | None) -> None:
            self._headers = _ended(self._headers)
            self._reading = _ended(self._reading)
            super().connection_lost(exc)

        def _expect_headers(self) -> None:
            """Close the connection unless a request is there in time; once until then."""
            if self._headers is None and (self.cycle is None or self.cycle.response_complete):
                self._headers = self.loop.call_later(header_seconds, self.transport.abort)

    return Timed


def _ended(timer: asyncio.TimerHandle | None) -> asyncio.TimerHandle | None:
    if timer is not None:
        timer.cancel()
    return None


def config(app: Any, host: str, port: int, settings: ServerSettings) -> uvicorn.Config:
    """How the application is served."""
    return uvicorn.Config(
        app, host=host, port=port, log_level="warning", ws="none",
        http=protocol(settings.header_timeout, settings.send_timeout),
        h11_max_incomplete_event_size=MAX_HEADERS, limit_concurrency=settings.max_connections,
        timeout_keep_alive=KEEP_ALIVE, proxy_headers=False, server_header=False,
    )  # fmt: skip
