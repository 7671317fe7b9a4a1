"""What an evaluation leaves for each question, and the file that it grows in.

Every arm has a JSON Lines file. The lines of a batch are followed by one that closes it; what has
no such line behind it was interrupted, and is cut off when the run goes on.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from tokenlens.spec.base import StrictModel


class Generated(StrictModel):
    """One answer, as an engine gave it."""

    text: str = Field(description="everything generated, special tokens included")
    tokens: int
    thinking_tokens: int = 0
    latent_steps: int = 0
    forced_steps: int = 0
    cold_stops: int = 0
    finished: bool = Field(description="ended by itself, not at the limit")


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
