"""Whether two mathematical answers are equal, from any thread and in bounded time."""

import atexit
import json
import logging
import os
import select
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from threading import Lock

PATIENCE = 30.0
"""Seconds that one comparison may take; math-verify's own bounds, of which there are three, end it
earlier unless it is inside one long operation on numbers."""
STARTING = 120.0
"""Seconds that the first one may take: the program imports sympy."""
MAX_CHARACTERS = 4000
"""An answer that is longer is wrong; parsers take time that grows faster than the text."""

HERE = False
"""Whether answers are compared in this process: it is one that scores, and does nothing else."""

_log = logging.getLogger(__name__)


def check() -> None:
    """Raise unless math-verify is installed.

    Raises
    ------
    ImportError
        It is not; names the extra that brings it.
    """
    if find_spec("math_verify") is None:
        raise ImportError(
            "scoring this task needs math-verify: install tokenlens-decoding with its eval extra"
        )


def equal(gold: str, given: str, patience: float = PATIENCE) -> bool:
    """Whether two answers are equal (parsed, never run as code); what takes too long is not."""
    check()
    if len(given) > MAX_CHARACTERS:
        return False
    if HERE:
        from tokenlens.evaluation.math_worker import verdict

        return verdict(gold, given)
    return _WORKER.ask(gold, given, patience)


def prepare() -> None:
    """Compare once, so that what math-verify imports is no comparison's time."""
    equal("1", "1")


class _Worker:
    """The program that compares; one for a process, started when it is first needed."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._running: subprocess.Popen[str] | None = None
        self._owner = 0

    def ask(self, gold: str, given: str, patience: float) -> bool:
        with self._lock:
            if self._owner != os.getpid():
                # A child of a fork must not talk into its parent's pipe.
                self._running, self._owner = None, os.getpid()
            if self._running is None:
                self._running = self._start()
                # Not a comparison's fault, and not of its time.
                self._exchange("1", "1", STARTING)
            found = self._exchange(gold, given, patience)
            if found is None:
                _log.warning("no verdict within %g s on %.80r: counted as wrong", patience, given)
                self._end()
            return bool(found)

    def _exchange(self, gold: str, given: str, patience: float) -> bool | None:
        running = self._running
        assert running is not None
        assert running.stdin is not None
        assert running.stdout is not None
        try:
            running.stdin.write(json.dumps([gold, given]) + "\n")
            running.stdin.flush()
            if not select.select([running.stdout], [], [], patience)[0]:
                return None
            return bool(json.loads(running.stdout.readline()))
        except (OSError, ValueError):
            # It has died, e.g. for want of memory.
            return None

    def _start(self) -> "subprocess.Popen[str]":
        # -P: the folder of the program has modules with names of the standard library's.
        path = os.pathsep.join(place for place in sys.path if place)
        return subprocess.Popen(
            [sys.executable, "-P", str(Path(__file__).with_name("math_worker.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,
        )

    def _end(self) -> None:
        running, self._running = self._running, None
        if running is None or self._owner != os.getpid():
            return
        running.kill()
        running.wait()
        for stream in (running.stdin, running.stdout):
            try:
                if stream is not None:
                    stream.close()
            except OSError:
                continue

    def end(self) -> None:
        """End the program."""
        with self._lock:
            self._end()

    def forked(self) -> None:
        """A child is told: another thread of its parent's may hold the lock, for good."""
        self._lock = Lock()


_WORKER = _Worker()
atexit.register(_WORKER.end)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_WORKER.forked)
