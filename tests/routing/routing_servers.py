"""Real processes for the tests of the server: vLLM from its own environment, and our router."""

import asyncio
import contextlib
import os
import sys
import threading
from pathlib import Path

from ports import free_port
from servers import VLLM_ENVIRONMENT, Process

from tokenlens.assets import path_of

ROOT = Path(__file__).parents[2]
VLLM_PYTHON = Path(os.environ.get("TOKENLENS_VLLM_PYTHON", ROOT / ".venv-vllm/bin/python"))


def vllm_server(role, log, port=None, path=None, generation_config="vllm"):
    """Stock vLLM with a tiny reasoner, or a model like it."""
    port = port or free_port()
    path = path or path_of(f"tiny-reasoner-{role}")
    command = [
        *(str(VLLM_PYTHON), "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", str(path), "--served-model-name", f"tiny-{role}"),
        *("--host", "127.0.0.1", "--port", str(port), "--enforce-eager", "--dtype", "float32"),
        *("--max-model-len", "1024", "--kv-cache-memory-bytes", str(48 << 20)),
        *("--max-num-seqs", "64", "--generation-config", generation_config),
    ]
    return Process(command, port, log, environment=VLLM_ENVIRONMENT)


def route_server(small, large, log, *options):
    """``tokenlens route`` as a user starts it."""
    port = free_port()
    command = [
        *(sys.executable, "-c", "from tokenlens.cli import main; main()", "route"),
        *("--small", small, "--large", large, "--port", str(port), *options),
    ]
    return Process(command, port, log)


class Proxy:
    """A real connection in between that holds, cuts or garbles what the server answers.

    ``hold``: ``budget`` bytes of all that comes back are let through, the rest once the mode is
    another one.
    """

    def __init__(self, target):
        host, _, port = target.removeprefix("http://").partition(":")
        self._target = host, int(port)
        self.mode = "pass"
        self.budget = 0
        # connections whose answer is held
        self.held = 0
        self.open_connections = 0
        self._loop = asyncio.new_event_loop()
        ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, args=(ready,), daemon=True)
        self._thread.start()
        assert ready.wait(60)

    @property
    def address(self):
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def close(self):
        """Stop listening."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(60)
        self._loop.close()

    def _serve(self, ready):
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._accept, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        self._loop.run_forever()
        server.close()
        open_tasks = asyncio.all_tasks(self._loop)
        for task in open_tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*open_tasks, return_exceptions=True))

    async def _accept(self, reader, writer):
        if self.mode == "down":
            writer.close()
            return
        self.open_connections += 1
        try:
            theirs, ours = await asyncio.open_connection(*self._target)
        except OSError:
            self.open_connections -= 1
            writer.close()
            return
        pumps = [
            asyncio.ensure_future(self._pump(reader, ours, False)),
            asyncio.ensure_future(self._pump(theirs, writer, True)),
        ]
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        for pump in pumps:
            pump.cancel()
        for one in (ours, writer):
            one.close()
        self.open_connections -= 1

    async def _pump(self, reader, writer, answers):
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(2048):
                if self.mode == "down":
                    return
                if answers and self.mode == "hold":
                    self.budget -= len(data)
                    if self.budget < 0:
                        await self._hold()
                if answers and self.mode == "truncate":
                    head, gap, body = data.partition(b"\r\n\r\n")
                    writer.write(head + gap + body[:300])
                    await writer.drain()
                    return
                if answers and self.mode == "malform":
                    data = data.replace(b'"choices"', b'"choices}')
                writer.write(data)
                await writer.drain()

    async def _hold(self):
        self.held += 1
        try:
            while self.mode == "hold":
                await asyncio.sleep(0.02)
        finally:
            self.held -= 1
