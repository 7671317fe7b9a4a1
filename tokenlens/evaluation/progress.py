"""How far an evaluation is, in a file of its folder that anybody may read while it runs."""

import json
import os
import threading
from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Any

from tokenlens.trace.files import write_text

FILE = "progress.json"
EVERY = 1.0
"""Seconds between two writes at least."""
WINDOW = 120.0
"""Seconds that the rate is taken over."""


class ProgressFile:
    """``progress.json``: answers done and to come, tokens, tokens a second, seconds to go.

    The rate is of the last two minutes, of answers of this process only; until there is one, the
    time to go is null. From any thread.
    """

    def __init__(self, folder: Path, total: int, budget_tokens: int | None = None) -> None:
        self._path, self._total, self._budget = folder / FILE, total, budget_tokens
        self._lock = threading.Lock()
        self._done = self._tokens = 0
        self._arm = ""
        self._servers: Sequence[dict[str, Any]] = ()
        self._began = monotonic()
        self._written = -EVERY
        self._recent: deque[tuple[float, int, int]] = deque([(self._began, 0, 0)])

    @property
    def tokens(self) -> int:
        """Tokens of all answers, those of earlier processes included."""
        return self._tokens

    def found(self, answers: int, tokens: int) -> None:
        """Count what an earlier process has answered."""
        with self._lock:
            self._done += answers
            self._tokens += tokens
            self._recent = deque([(monotonic(), self._done, self._tokens)])

    def answered(
        self, arm: str, answers: int, tokens: int, servers: Sequence[dict[str, Any]] = ()
    ) -> None:
        """Count answers of this process."""
        with self._lock:
            self._arm, self._servers = arm, servers
            self._done += answers
            self._tokens += tokens
            now = monotonic()
            self._recent.append((now, self._done, self._tokens))
            while len(self._recent) > 2 and self._recent[1][0] < now - WINDOW:
                self._recent.popleft()
            if now - self._written >= EVERY:
                self._write("running")

    def ended(self, state: str) -> None:
        """Say how it ended: ``done``, ``stopped`` (with what stopped it), ``failed``."""
        with self._lock:
            self._write(state)

    def _write(self, state: str) -> None:
        now = monotonic()
        began, done, tokens = self._recent[0]
        passed = now - began
        rate = (self._tokens - tokens) / passed if passed > 0 else 0.0
        speed = (self._done - done) / passed if passed > 0 else 0.0
        left = max(0, self._total - self._done)
        found = {
            "state": state,
            "arm": self._arm,
            "done": self._done,
            "total": self._total,
            "tokens": self._tokens,
            "budget_tokens": self._budget,
            "tokens_per_second": round(rate, 1),
            "eta_seconds": round(left / speed) if speed and state == "running" else None,
            "seconds": round(now - self._began, 1),
            "servers": list(self._servers),
            "pid": os.getpid(),
            "updated": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        self._written = now
        write_text(self._path, json.dumps(found, indent=1) + "\n")


def read(folder: Path) -> dict[str, Any]:
    """What a run in a folder last said.

    Raises
    ------
    ValueError
        No evaluation has run there.
    """
    try:
        found = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"folder: {folder} has no {FILE} ({type(error).__name__}); allowed: the --out folder of"
            " an evaluation that has begun"
        ) from None
    if not isinstance(found, dict):
        raise ValueError(f"folder: {folder / FILE} is no progress of an evaluation")
    return found
