"""A fake of a server of vLLM's, for faults that a real one cannot be made to have on demand.

It speaks enough of the protocol for :mod:`tokenlens.evaluation.engine_server`; its answers are a
function of the prompt alone. Real servers are in ``tests/vllm/test_vllm_evaluation.py``.
"""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FINE = "fine"


def ids_of(prompt):
    """The answer to a prompt."""
    return [1 + sum(prompt) % 90, 1 + len(prompt) % 90]


class FakeServer:
    """A server whose ``mode`` says how it answers generation requests.

    ``fine``; a status; ``drop`` (closes the connection); ``hang`` (until the mode changes, and has
    no health either); ``aborted``, ``no trace``, ``no json``, ``no ids``, ``too many``.
    """

    def __init__(self, mode=FINE, owned_by="vllm", name="tiny", key=None, tokens=None):
        self.mode, self.asked, self.answered = mode, [], []
        self.name, self.key, self.tokens, self.owned_by = name, key, tokens, owned_by
        self.fail_first = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *arguments):
                pass

            def do_GET(self):
                outer.get(self)

            def do_POST(self):
                outer.post(self)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._changed = threading.Event()
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def close(self):
        """End it, with every connection."""
        self.mode = "drop"
        self._changed.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(30)

    def get(self, handler):
        """What is asked before generation."""
        if self.key and handler.headers.get("Authorization") != f"Bearer {self.key}":
            return self.send(handler, 401, {"error": "no key"})
        if handler.path == "/health" and self.mode == "hang":
            return self.send(handler, 503, {})
        found = {
            "/v1/models": {"data": [{"id": self.name, "owned_by": self.owned_by}]},
            "/version": {"version": "0.32.0"},
            "/health": {},
        }.get(handler.path)
        return self.send(handler, 404 if found is None else 200, found or {})

    def post(self, handler):
        """A generation request, or the tokenizer's."""
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        if handler.path == "/tokenize":
            found = {"tokens": self.tokens} if self.tokens else {}
            return self.send(handler, 200 if self.tokens else 404, found)
        probe = body["max_tokens"] == 1
        mode = self.mode
        if not probe:
            self.asked.append(tuple(body["prompt"]))
            if self.fail_first:
                self.fail_first -= 1
                mode = 500
        if probe and mode not in ("no trace", 400):
            mode = FINE
        if isinstance(mode, int):
            return self.send(handler, mode, {"error": {"message": "methods[0].top_k: got -1"}})
        if mode == "hang":
            self._changed.wait(60)
            mode = "drop"
        if mode == "drop":
            handler.close_connection = True
            return handler.connection.close()
        ids = ids_of(body["prompt"])[: body["max_tokens"]]
        counts = {"thinking_tokens": 1, "latent_steps": 0, "forced_steps": 0, "cold_stops": 0}
        choice = {"token_ids": ids, "finish_reason": "stop"}
        data = {"choices": [choice], "kv_transfer_params": {"tokenlens": {"counts": counts}}}
        if mode == "aborted":
            choice["finish_reason"] = "abort"
        elif mode == "no trace":
            del data["kv_transfer_params"]
        elif mode == "no ids":
            choice["token_ids"] = ["a"]
        elif mode == "too many":
            choice["token_ids"] = [1] * 10_000
        if not probe:
            self.answered.append(tuple(body["prompt"]))
        return self.send(handler, 200, b"{" if mode == "no json" else data)

    def send(self, handler, status, data):
        """A response."""
        content = data if isinstance(data, bytes) else json.dumps(data).encode()
        handler.send_response(status)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)
