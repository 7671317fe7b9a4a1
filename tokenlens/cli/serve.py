"""Serves one page to this machine's browser, and nothing else."""

from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

from tokenlens.cli.base import console


def server(page: str, port: int) -> HTTPServer:
    """A server of one page, on the loopback address only."""
    body = page.encode()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = self.path == "/"
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(body) if found else 0))
            self.end_headers()
            if found:
                self.wfile.write(body)

        def log_message(self, *arguments: Any) -> None:
            """Say nothing."""

    return HTTPServer(("127.0.0.1", port), Handler)


def serve_page(page: str, port: int) -> None:
    """Serve until the user interrupts."""
    with server(page, port) as running:
        console.print(f"http://127.0.0.1:{running.server_port}/  (Ctrl-C ends it)")
        try:
            running.serve_forever()
        except KeyboardInterrupt:
            console.print("closed")
