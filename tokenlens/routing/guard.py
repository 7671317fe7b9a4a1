"""Who may ask the server: the name it was asked by, the keys, and the bytes that all bodies hold.

A plain wrapper around the application: behind one of the framework's own, a client that leaves is
not seen.
"""

import hashlib
import hmac
import ipaddress
import re
import socket
from collections.abc import Sequence
from typing import Any

from fastapi.responses import JSONResponse

from tokenlens.routing.protocol import error_body

OPEN = frozenset({"/health"})
"""Paths for whoever looks after the machine; no key."""
HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([\w.-]+))(?::\d{1,5})?", re.ASCII)
LOCAL = frozenset({"localhost", "ip6-localhost"})


class Guard:
    """Turns away what was not meant for this server, or comes from a stranger.

    Parameters
    ----------
    keys
        Any of them lets in; none: everybody may.
    hosts
        Names that the server may be asked by, beside addresses, ``localhost`` and its own name;
        ``*``: any. A page whose name was made to lead here (DNS rebinding) has another one.
    metrics
        ``open``, ``key`` or ``off``.
    held
        Bytes that the bodies of all requests may hold at once.
    """

    def __init__(
        self, app: Any, *, keys: Sequence[str] = (), hosts: Sequence[str] = (),
        metrics: str = "open", held: int = 1 << 30,
    ) -> None:  # fmt: skip
        self._app = app
        # Of one length, so that the time of a comparison says nothing of it.
        self._digests = [_digest(key.encode()) for key in keys]
        self._hosts = frozenset(name.lower().rstrip(".") for name in hosts) | LOCAL
        self._hosts |= {socket.gethostname().lower()}
        self._metrics = metrics
        self._most, self._held = held, 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if (refusal := self._refusal(scope)) is not None:
            await refusal(scope, receive, send)
            return
        taken = 0

        async def counted() -> Any:
            nonlocal taken
            message = await receive()
            size = len(message.get("body", b""))
            taken += size
            self._held += size
            return message

        if self._held >= self._most and scope["method"] == "POST":
            message = "too many bytes are being read already; try again later"
            response = JSONResponse(error_body(message, "overloaded", 503), 503,
                                    {"Retry-After": "1", "Connection": "close"})  # fmt: skip
            await response(scope, receive, send)
            return
        try:
            await self._app(scope, counted, send)
        finally:
            self._held -= taken

    def _refusal(self, scope: Any) -> JSONResponse | None:
        names = [value for name, value in scope["headers"] if name == b"host"]
        if len(names) != 1 or not self._is_ours(names[0].decode("latin-1")):
            message = (
                "Host: this server goes by its address, localhost and its own name; others are"
                " allowed with --allowed-host NAME"
            )
            return _refused(400, message, "invalid_request_error")
        path = scope["path"]
        is_open = path in OPEN or (path == "/metrics" and self._metrics == "open")
        # A browser asks before it sends the key.
        if not self._digests or is_open or scope["method"] == "OPTIONS":
            return None
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        if len(given) == 1 and self._is_key(given[0]):
            return None
        message = "Authorization: allowed: Bearer and one of this server's API keys"
        return _refused(401, message, "invalid_api_key", {"WWW-Authenticate": "Bearer"})

    def _is_ours(self, host: str) -> bool:
        if "*" in self._hosts:
            return True
        found = HOST.fullmatch(host)
        if found is None:
            return False
        name = found[1] or found[2]
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name.lower().rstrip(".") in self._hosts
        return True

    def _is_key(self, header: bytes) -> bool:
        scheme, _, key = header.strip().partition(b" ")
        digest = _digest(key.strip())
        # All of them, whichever it is.
        found = [hmac.compare_digest(digest, one) for one in self._digests]
        return scheme.lower() == b"bearer" and any(found)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _refused(
    status: int, message: str, kind: str, headers: dict[str, str] | None = None
) -> JSONResponse:
    # What such a client would still send is not read.
    shown = {**(headers or {}), "Connection": "close"}
    return JSONResponse(error_body(message, kind, status), status, shown)
