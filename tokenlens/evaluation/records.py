"""What an evaluation leaves for each question, and the file that it grows in.

Every arm has a JSON Lines file. The lines of a batch are followed by one that closes it; what has
no such line behind it was interrupted, and is cut off when the run goes on. A batch that was
generated and not yet scored is in a file beside it, ``.unscored``, from which the run goes on; of
an engine whose answers come one by one, those of the batch at work are in ``.partial``.
"""

import json
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

from pydantic import Field

from tokenlens.spec.base import StrictModel
from tokenlens.trace.files import write_text
from tokenlens.trace.finish import Finish


class Generated(StrictModel):
    """One answer, as an engine gave it."""

    text: str = Field(description="everything generated, special tokens included")
    tokens: int = Field(description="all that were generated, also those that were thrown away")
    discarded_tokens: int = Field(0, description="of an answer that was steered")
    thinking_tokens: int = 0
    latent_steps: int = 0
    forced_steps: int = 0
    cold_stops: int = 0
    finished: bool = Field(description="ended by itself, not at the limit")
    opened: bool = Field(False, description="the prompt ended in an open thought")
    finish: Finish | None = Field(None, description="how the thinking went; None: nobody said")


class Record(Generated):
    """One answer to one question, scored."""

    question: str
    sample: int
    correct: bool


class RecordFile:
    """The records of one arm on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: list[Record] = []
        self.seconds: list[float] = []
        if path.exists():
            self._resume()

    @property
    def batches(self) -> int:
        """How many batches are done."""
        return len(self.seconds)

    def add(self, records: Sequence[Record], seconds: float) -> None:
        """Add a batch; it is on disk when this returns."""
        closing = json.dumps({"batch": self.batches, "seconds": round(seconds, 3)})
        text = "".join(f"{record.model_dump_json()}\n" for record in records) + closing + "\n"
        with self.path.open("a", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        self.records.extend(records)
        self.seconds.append(seconds)
        self._unscored.unlink(missing_ok=True)
        self._partial.unlink(missing_ok=True)

    def keep(self, answers: Sequence[Generated], seconds: float) -> None:
        """Put what was generated for the next batch on disk, before it is scored."""
        lines = [json.dumps([self.batches, seconds]), *(one.model_dump_json() for one in answers)]
        write_text(self._unscored, "".join(f"{line}\n" for line in lines))

    def kept(self) -> tuple[list[Generated], float] | None:
        """What was generated for the next batch and not scored, and the seconds that it took."""
        if not self._unscored.exists():
            return None
        # A text may hold what splitlines() takes for the end of a line.
        head, *lines = self._unscored.read_text(encoding="utf-8").rstrip("\n").split("\n")
        batch, seconds = json.loads(head)
        if batch != self.batches:
            return None
        return [Generated.model_validate_json(line) for line in lines], seconds

    def pieces(self) -> "Pieces":
        """The answers of the next batch that are there, and those that are to come."""
        return Pieces(self._partial, self.batches)

    @property
    def _partial(self) -> Path:
        return self.path.with_suffix(".partial")

    @property
    def _unscored(self) -> Path:
        return self.path.with_suffix(".unscored")

    def _resume(self) -> None:
        whole = at = 0
        batch: list[Record] = []
        with self.path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                at += len(line)
                if line.startswith(b'{"batch"'):
                    self.seconds.append(json.loads(line)["seconds"])
                    self.records.extend(batch)
                    batch, whole = [], at
                else:
                    batch.append(Record.model_validate_json(line))
        if whole < self.path.stat().st_size:
            os.truncate(self.path, whole)


class Pieces:
    """One batch whose answers come one by one, in any order and from any thread.

    Each is on disk when :meth:`add` returns; what a crash cut off in the middle is left out.
    """

    def __init__(self, path: Path, batch: int) -> None:
        self._path, self._lock = path, threading.Lock()
        self.answers: dict[int, Generated] = {}
        self.seconds = 0.0
        self._last = perf_counter()
        if not self._resume(batch):
            path.write_text(json.dumps([batch]) + "\n", encoding="utf-8")

    def add(self, row: int, answer: Generated) -> None:
        """Take a row's answer; a second one for the same row is dropped."""
        with self._lock:
            if row in self.answers:
                return
            now = perf_counter()
            # Wall time adds up over all lines, whichever process wrote them.
            passed, self._last = now - self._last, now
            self.seconds += passed
            line = json.dumps([row, round(passed, 6), answer.model_dump(mode="json")])
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
            self.answers[row] = answer

    def _resume(self, batch: int) -> bool:
        """Read what is there; false where it is nothing, or of another batch."""
        if not self._path.exists():
            return False
        whole = 0
        with self._path.open("rb") as file:
            head = file.readline()
            if not head.endswith(b"\n") or json.loads(head) != [batch]:
                return False
            whole = len(head)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                row, passed, answer = json.loads(line)
                self.answers.setdefault(row, Generated.model_validate(answer))
                self.seconds += passed
                whole += len(line)
        if whole < self._path.stat().st_size:
            os.truncate(self._path, whole)
        return True
