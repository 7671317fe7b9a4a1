"""Serves one page to this machine's browser, and nothing else."""

from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import SHUT_RDWR, socket
from threading import Timer
from typing import Any
from urllib.parse import urlsplit

from tokenlens.cli.base import console

HOSTS = ("127.0.0.1", "localhost")
"""Names of this machine. A page elsewhere whose name was made to lead here sends its own."""

PATIENCE = 10.0
"""Seconds that one connection may take in all."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # Whoever goes away in the middle of an answer is no error.
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing."""


def server(page: str, port: int, patience: float = PATIENCE) -> ThreadingHTTPServer:
    """A server of one page, on the loopback address only; each connection has its own thread."""
    body = page.encode("utf-8", "backslashreplace")

    class Handler(BaseHTTPRequestHandler):
        timeout = patience

        def setup(self) -> None:
            super().setup()
            self._end = Timer(patience, partial(_close, self.connection))
            self._end.daemon = True
            self._end.start()

        def finish(self) -> None:
            self._end.cancel()
            super().finish()

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def _answer(self, *, with_body: bool) -> None:
            status, content = 404, b""
            if not is_ours(self.headers.get_all("Host") or []):
                status, content = 403, b"this page is for a browser on this machine\n"
            elif self.path == "/":
                status, content = 200, body
            self.send_response(status)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            if with_body:
                self.wfile.write(content)

        def log_message(self, *arguments: Any) -> None:
            """Say nothing."""

    return _Server(("127.0.0.1", port), Handler)


def is_ours(hosts: list[str]) -> bool:
    """Whether the ``Host`` headers are one that names this machine; the port may be a tunnel's."""
    if len(hosts) != 1 or "@" in hosts[0]:
        return False
    try:
        found = urlsplit(f"//{hosts[0].strip()}")
        _ = found.port
    except ValueError:
        return False
    return found.hostname in HOSTS and not (found.path or found.query or found.fragment)


def serve_page(page: str, port: int) -> None:
    """Serve until the user interrupts."""
    with server(page, port) as running:
        console.print(f"http://127.0.0.1:{running.server_port}/  (Ctrl-C ends it)")
        try:
            running.serve_forever()
        except KeyboardInterrupt:
            console.print("closed")


def _close(connection: socket) -> None:
    try:
        connection.shutdown(SHUT_RDWR)
    except OSError:
        # It has ended by itself.
        return
