"""Real servers for tests, each in a process of its own."""

import contextlib
import os
import signal
import subprocess
import time

import httpx

START_SECONDS = 900
VLLM_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    # Two workers of one machine: nobody binds threads to a node of memory of its own.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    # A connection that is closed at the moment when it is used again fails its request.
    "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "600",
}
"""Of processes that run vLLM on a CPU."""


class Process:
    """A server in a process of its own, up when constructed."""

    def __init__(self, command, port, log, health="/health", environment=()):
        self.address = f"http://127.0.0.1:{port}"
        self._log = log
        values = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **dict(environment)}
        with log.open("a") as out:
            self.process = subprocess.Popen(
                command, env=values, stdout=out, stderr=out, start_new_session=True
            )
        try:
            self._wait(self.address + health)
        except BaseException:
            self.stop()
            raise

    def _wait(self, url):
        deadline = time.monotonic() + START_SECONDS
        while True:
            self.check()
            assert time.monotonic() < deadline, self._log.read_text()[-4000:]
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(url, timeout=5, trust_env=False).status_code == 200:
                    return
            time.sleep(0.5)

    def stop(self, how=signal.SIGTERM):
        """End it and everything that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, how)
        try:
            self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(timeout=60)

    def check(self):
        """It still runs."""
        assert self.process.poll() is None, self._log.read_text()[-4000:]
