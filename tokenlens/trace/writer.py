"""Writes traces to disk while they happen, a line at a time.

Every line is with the operating system before the call returns, so that a process that dies loses
nothing that it was handed. Knows no engine.
"""

import errno
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from tokenlens.spec import DecodingSpec
from tokenlens.spec.base import StrictModel
from tokenlens.trace.files import replacing
from tokenlens.trace.lines import End, Header, Recording, StepLine, TokenTexts, token_ids
from tokenlens.trace.records import PhaseName, Trace, TraceCounts, TraceStep, Tripped, kept_prompt
from tokenlens.trace.texts import StepTexts, step_texts, token_text


class TraceWriter:
    """Streams traces into one file.

    Parameters
    ----------
    path
        The file; one that exists is replaced. Or the number of one that is open for writing.
    text_of
        Text of a token, where there is no tokenizer. Without either the file holds ids only.
    tokenizer
        Anything with ``decode(ids)``: the steps' texts are those of the text as a whole, also where
        a character takes several tokens.
    sync
        Wait for the disk after every line, so that a power cut loses nothing either. Slow.

    Examples
    --------
    >>> with TraceWriter(path, tokenizer=tokenizer) as file:  # doctest: +SKIP
    ...     for trace in traces(kwargs):
    ...         file.write(trace)
    """

    def __init__(
        self,
        path: str | Path | int,
        text_of: Callable[[int], str] | None = None,
        *,
        tokenizer: Any = None,
        sync: bool = False,
    ) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND
        self._file = os.dup(path) if isinstance(path, int) else os.open(path, flags, 0o644)
        if tokenizer is not None and text_of is None:
            text_of = partial(token_text, tokenizer)
        self._text_of, self._sync, self._tokenizer = text_of, sync, tokenizer
        self._growing: list[StepTexts] = []
        self._known_texts: dict[int, str] = {}
        self._known: set[int] = set()
        self._specs: list[DecodingSpec] = []
        self._written: list[int] = []

    def begin(
        self,
        *,
        engine: str,
        spec: DecodingSpec,
        sample: int = 0,
        model: str = "",
        prompt: str = "",
        prompt_ids: Sequence[int] = (),
    ) -> int:
        """Open a trace; returns its number, by which its steps are added."""
        number = len(self._specs)
        self._specs.append(spec)
        self._written.append(0)
        self._growing.append(StepTexts(lambda ids: str(self._tokenizer.decode(ids))))
        self._put(
            Header(
                trace=number,
                engine=engine,
                spec=spec,
                sample=sample,
                model=model,
                prompt=prompt,
                prompt_ids=kept_prompt(prompt_ids, spec.trace.level),
            )
        )
        return number

    def step(self, trace: int, step: TraceStep, text: str | None = None) -> None:
        """Add a step, within the bounds of the trace's spec.

        ``text`` is what it adds, if that is known and not its token's text.
        """
        bounds = self._specs[trace].trace
        if self._written[trace] >= bounds.max_steps:
            return
        self._written[trace] += 1
        step = step.model_copy(update={"entries": step.entries[: bounds.most_entries(step.latent)]})
        if self._text_of is not None:
            new = [token for token in dict.fromkeys(token_ids(step)) if token not in self._known]
            if new:
                self.texts({token: self._text_of(token) for token in new})
        if text is None and self._tokenizer is not None:
            added = self._growing[trace].add(step.token)
            text = added if added != self._known_texts.get(step.token) else None
        self._put(StepLine(trace=trace, text=text, **dict(step)))

    def texts(self, texts: dict[int, str]) -> None:
        """Add texts of tokens."""
        self._known.update(texts)
        if self._tokenizer is not None:
            self._known_texts.update(texts)
        self._put(TokenTexts(texts=texts))

    def steps_written(self, trace: int) -> int:
        """How many steps of a trace are in the file."""
        return self._written[trace]

    def end(
        self,
        trace: int,
        *,
        final_phase: PhaseName,
        counts: TraceCounts,
        same_noise: bool = False,
        tripped: Tripped | None = None,
    ) -> None:
        """Close a trace."""
        full = self._specs[trace].trace.level == "full"
        dropped = max(0, counts.tokens - self._written[trace]) if full else 0
        tail = self._growing[trace].rest() if self._tokenizer is not None else ""
        self._put(
            End(
                trace=trace,
                final_phase=final_phase,
                counts=counts,
                dropped_steps=dropped,
                same_noise=same_noise,
                tripped=tripped,
                tail=tail or None,
            )
        )
        if not self._sync:
            self._flush()

    def write(
        self,
        trace: Trace,
        *,
        model: str = "",
        prompt: str = "",
        texts: Mapping[int, str] | None = None,
        pieces: Mapping[int, str] | None = None,
    ) -> None:
        """Write a trace that is there as a whole."""
        number = self.begin(
            engine=trace.engine,
            spec=trace.spec,
            sample=trace.sample,
            model=model,
            prompt=prompt,
            prompt_ids=trace.prompt_ids,
        )
        if new := {k: v for k, v in (texts or {}).items() if k not in self._known}:
            self.texts(new)
        for index, step in enumerate(trace.steps):
            self.step(number, step, (pieces or {}).get(index))
        self.end(
            number,
            final_phase=trace.final_phase,
            counts=trace.counts,
            same_noise=trace.same_noise,
            tripped=trace.tripped,
        )

    def close(self) -> None:
        """Close the file; traces that were not ended stay visibly incomplete."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> "TraceWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    def _put(self, line: StrictModel) -> None:
        # A spec's null may be a choice; a step's is a field that has nothing to say.
        short = isinstance(line, (StepLine, End))
        data = line.model_dump_json(exclude_none=short).encode() + b"\n"
        while data:
            data = data[os.write(self._file, data) :]
        if self._sync:
            self._flush()

    def _flush(self) -> None:
        try:
            os.fsync(self._file)
        except OSError as error:
            # Pipes and terminals have no disk to wait for.
            if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EROFS):
                raise


def write_traces(path: str | Path, recordings: Iterable[Recording]) -> None:
    """Write recordings to a file, as :func:`tokenlens.trace.read_traces` gave them.

    The file is there as a whole or, after a failure, as it was before.
    """
    with replacing(path) as whole, TraceWriter(whole.fileno()) as file:
        for one in recordings:
            file.write(
                one.trace, model=one.model, prompt=one.prompt, texts=one.texts, pieces=one.pieces
            )


def record(trace: Trace, tokenizer: Any, *, model: str = "", prompt: str = "") -> Recording:
    """A trace with the texts of its tokens.

    Parameters
    ----------
    tokenizer
        Anything with ``decode(ids)``.
    """
    ids = dict.fromkeys(token for step in trace.steps for token in token_ids(step))
    texts = {token: token_text(tokenizer, token) for token in ids}
    tokens = [step.token for step in trace.steps]
    added = enumerate(zip(tokens, step_texts(tokens, tokenizer)))
    pieces = {index: text for index, (token, text) in added if text != texts[token]}
    return Recording(trace=trace, model=model, prompt=prompt, texts=texts, pieces=pieces)
