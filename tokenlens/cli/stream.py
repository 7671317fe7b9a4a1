"""Traces of a ``generate()`` call to a file, while it runs."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import StoppingCriteria

from tokenlens.cli.base import complain
from tokenlens.hf import traces
from tokenlens.trace import Trace, TraceWriter

EVERY = 64
"""Steps between two looks at the device: a look waits for it, and reads all steps so far."""


class TraceStream(StoppingCriteria):
    """Stops nothing: writes what happened since it looked last.

    A process that is killed loses the steps since the last look; one that fails loses none, as
    :meth:`finish` is called on the way out. A file that is there already stays until the new one is
    whole: until then the steps are in a file beside it, of the same name with ``.part``.
    """

    def __init__(self, path: Path, tokenizer: Any, model: str, prompts: Sequence[str]) -> None:
        self._target, self.partial = path, path
        if path.is_file() and path.stat().st_size:
            self._target = Path(os.path.realpath(path))
            self.partial = self._target.with_name(f"{self._target.name}.part")
        self._file = TraceWriter(self.partial, tokenizer=tokenizer)
        self._model, self._prompts = model, prompts
        self._opened: list[int] = []
        self._calls, self._every = 0, EVERY

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        self._calls += 1
        if self._calls >= self._every:
            # Each look reads everything again: further apart as the trace grows.
            self._every = max(self._calls + EVERY, self._calls * 5 // 4)
            self._write(self._found())
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

    def finish(self) -> None:
        """Write the rest, and close the traces that are over."""
        found = self._found()
        self._write(found)
        for number, trace in zip(self._opened, found):
            self._file.end(
                number,
                final_phase=trace.final_phase,
                counts=trace.counts,
                same_noise=trace.same_noise,
            )
        self._file.close()
        if self.partial != self._target:
            self.partial.replace(self._target)

    def close(self) -> None:
        """Write the rest after a failure; the traces stay visibly incomplete."""
        try:
            self._write(self._found())
        finally:
            self._file.close()
            if self.partial != self._target:
                complain(Exception(f"{self._target} is as it was; what there is: {self.partial}"))

    def _found(self) -> list[Trace]:
        try:
            return [trace for trace in traces() if trace is not None]
        except LookupError:
            return []

    def _write(self, found: Sequence[Trace]) -> None:
        if not self._opened:
            self._opened = [
                self._file.begin(
                    engine=trace.engine,
                    spec=trace.spec,
                    sample=trace.sample,
                    model=self._model,
                    prompt=prompt,
                    prompt_ids=trace.prompt_ids,
                )
                for trace, prompt in zip(found, self._prompts)
            ]
        for number, trace in zip(self._opened, found):
            for step in trace.steps[self._file.steps_written(number) :]:
                self._file.step(number, step)
