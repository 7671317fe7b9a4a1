"""Scores of a batch, in processes of their own: a score may hang or die, and harms nobody.

A score that another process can import runs in programs that are kept for the next batch; one that
cannot (a lambda, a notebook's cell) in a fork of this process, or, where there are no safe forks,
in this thread. Works in any thread, with or without a ``__main__`` that can be imported.
"""

import atexit
import builtins
import contextlib
import json
import logging
import os
import select
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic
from typing import IO, Any

from tokenlens.errors import ScoringError
from tokenlens.evaluation import score_worker

Score = Callable[..., bool]
PATIENCE = 60.0
"""Seconds that one score may take."""
STARTING = 120.0
"""Seconds that a process may take until it scores: it imports what the score needs."""
MOST = 4
"""Processes at a time."""
SHARE = 16
"""Answers that are worth a process more."""
SUSPECT = 8
"""Answers of a batch from which on it is no chance that not one of them got a verdict."""

_log = logging.getLogger(__name__)


def score_all(
    score: Score, jobs: Sequence[tuple[Any, str]], patience: float = PATIENCE
) -> list[bool]:
    """What a score says of each question and text.

    Parameters
    ----------
    score
        Called as ``score(question, text)``.
    patience
        Seconds for each; what takes longer, or ends its process twice, counts as wrong, with a
        warning.

    Raises
    ------
    ScoringError
        Of eight answers or more none got a verdict.
    Exception
        What the score itself raised.
    """
    if not jobs:
        return []
    name = _importable(score, jobs)
    if name is None and sys.platform != "linux":
        return [bool(score(*job)) for job in jobs]
    many = 1 if name is None else min(MOST, os.cpu_count() or 1, 1 + len(jobs) // SHARE)
    taken: list[_Process] = []
    here = threading.local()

    def judge(place: int) -> bool | None:
        question, text = jobs[place]
        for _ in range(2):
            process = getattr(here, "process", None)
            if process is None or not process.alive:
                process = None if name is None else _program(name)
                process = here.process = process or _fork(score, jobs)
                taken.append(process)
            # A fork has the jobs already.
            job = [question.id, question.prompt, question.answer, text] if process.name else place
            try:
                return process.ask(job, patience)
            except TimeoutError:
                _log.warning("no score within %g s for %.80r: counted as wrong", patience, text)
                return None
            except EOFError:
                continue
        _log.warning("the score ended its process on %.80r: counted as wrong", text)
        return None

    try:
        with ThreadPoolExecutor(many) as pool:
            found = list(pool.map(judge, range(len(jobs))))
    finally:
        for process in taken:
            if process.name and process.alive and process.idle:
                _POOL.give_back(process)
            else:
                process.end()
    if len(jobs) >= SUSPECT and all(one is None for one in found):
        raise ScoringError(
            f"score: none of {len(jobs)} answers got a verdict, each hung or ended its process;"
            " what was generated is kept, and is scored when the same command runs again"
        )
    return [bool(one) for one in found]


def _importable(score: Score, jobs: Sequence[tuple[Any, str]]) -> list[str] | None:
    """Module and name of a score that another process can import; ``None`` where it cannot."""
    from tokenlens.evaluation.question import Question

    module, name = getattr(score, "__module__", None), getattr(score, "__qualname__", "")
    if not module or module == "__main__" or any(type(job[0]) is not Question for job in jobs):
        return None
    found = getattr(sys.modules.get(module), name, None)
    return [module, name] if found is score else None


class _Process:
    """A process that scores, with a pipe to it and one from it."""

    def __init__(self, pid: int, to: IO[bytes], back: IO[bytes], reap: Callable[[], Any]) -> None:
        self.pid, self.alive, self.idle = pid, True, True
        self.name: list[str] = []
        self._to, self._back, self._reap = to, back, reap
        self._owner = os.getpid()

    def ask(self, what: Any, patience: float) -> bool:
        """One verdict.

        Raises
        ------
        TimeoutError
            None came in time; the process is ended.
        EOFError
            The process has ended.
        """
        self.idle = False
        try:
            self._to.write(json.dumps(what).encode() + b"\n")
            self._to.flush()
            if not select.select([self._back], [], [], patience)[0]:
                self.end()
                raise TimeoutError
            fine, *found = json.loads(self._back.readline())
        except (OSError, ValueError) as error:
            if isinstance(error, TimeoutError):
                raise
            self.end()
            raise EOFError from None
        self.idle = True
        if not fine:
            raise _error(*found)
        return bool(found[0])

    def end(self) -> None:
        """Kill it; a child of a fork leaves its parent's processes alone."""
        if not self.alive:
            return
        self.alive = False
        if self._owner == os.getpid():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            self._reap()
        for file in (self._to, self._back):
            try:
                file.close()
            except OSError:
                continue


def _error(name: str, text: str) -> Exception:
    """What a score raised: a built-in exception as itself, another in words."""
    kind = getattr(builtins, name, None)
    if isinstance(kind, type) and issubclass(kind, Exception):
        try:
            return kind(text)
        except TypeError:
            # Some take more than a text.
            pass
    return RuntimeError(f"{name}: {text}")


class _Pool:
    """Programs that wait for the next batch."""

    def __init__(self) -> None:
        self._idle: list[_Process] = []
        self._lock = threading.Lock()

    def take(self, name: list[str]) -> _Process | None:
        """One that has the score already, else any."""
        with self._lock:
            self._idle.sort(key=lambda one: one.name == name)
            return self._idle.pop() if self._idle else None

    def give_back(self, process: _Process) -> None:
        """Keep it for the next batch."""
        with self._lock:
            self._idle.append(process)
            extra = self._idle[:-MOST]
            self._idle = self._idle[-MOST:]
        for one in extra:
            one.end()

    def close(self) -> None:
        """End them all."""
        with self._lock:
            idle, self._idle = self._idle, []
        for one in idle:
            one.end()

    def forked(self) -> None:
        """A child begins with none: its parent's are not its own."""
        self.__init__()  # type: ignore[misc]


_POOL = _Pool()
atexit.register(_POOL.close)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_POOL.forked)


def _program(name: list[str]) -> _Process | None:
    """A program that has the score; ``None`` where it cannot import it."""
    process = _POOL.take(name)
    if process is None:
        path = os.pathsep.join(place for place in sys.path if place)
        # -P: the folder of the program has modules with names of the standard library's.
        running = subprocess.Popen(
            [sys.executable, "-P", str(Path(__file__).with_name("score_worker.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,
        )
        assert running.stdin is not None
        assert running.stdout is not None
        process = _Process(running.pid, running.stdin, running.stdout, running.wait)
    if process.name != name:
        began = monotonic()
        try:
            process.ask(name, STARTING)
        except (EOFError, TimeoutError):
            process.end()
            raise ScoringError(
                f"score: its process did not begin ({monotonic() - began:.0f} s); what was"
                " generated is kept"
            ) from None
        except Exception as error:
            process.end()
            _log.info("the score cannot be imported elsewhere: %r", error)
            return None
        process.name = name
    return process


def _fork(score: Score, jobs: Sequence[tuple[Any, str]]) -> _Process:
    """A fork of this process that has the score and the jobs, which are asked for by number."""
    to_child, to = os.pipe()
    back, from_child = os.pipe()
    with warnings.catch_warnings():
        # Python warns of threads that hold locks; one that waits for such a lock is ended in time.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(to)
            os.close(back)
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1)
            with open(to_child, "rb") as asked, open(from_child, "wb") as answers:
                score_worker.serve(asked, answers, lambda place: score(*jobs[place]))
            code = 0
        finally:
            # Nothing of the parent's is cleaned up here.
            os._exit(code)
    os.close(to_child)
    os.close(from_child)
    files = os.fdopen(to, "wb"), os.fdopen(back, "rb")
    return _Process(pid, *files, lambda: os.waitpid(pid, 0))
