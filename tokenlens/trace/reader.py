"""Reads trace files, and says what is wrong with one without hiding what is right."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from pydantic import ValidationError

from tokenlens.errors import TraceFileError
from tokenlens.trace.files import open_regular
from tokenlens.trace.lines import (
    KIND,
    LINE,
    MAX_LINE_BYTES,
    End,
    Header,
    Recording,
    StepLine,
    TokenTexts,
)
from tokenlens.trace.records import SCHEMA_VERSION, Trace, TraceStep, never_opened
from tokenlens.trace.summary import Summary, Tally, counts_of

MAX_NAMED = 8
"""Traces that an error names by their numbers; of more it says how many."""
MAX_SHOWN = 200
"""Characters of an error about one line."""
PROMPT = 200
"""Characters of a prompt that stand beside a summary."""


class TraceFile(NamedTuple):
    """What a file held, and what was wrong with it (``None``: nothing)."""

    recordings: tuple[Recording, ...]
    error: TraceFileError | None


class Summarized(NamedTuple):
    """The figures of one trace of a file, and the start of its prompt."""

    engine: str
    prompt: str
    complete: bool
    figures: Summary


class _Whole:
    """A trace of which everything is kept."""

    def __init__(self, header: Header) -> None:
        self.header = header
        self.kept: list[TraceStep] = []
        self.pieces: dict[int, str] = {}
        self.end: End | None = None

    @property
    def steps(self) -> int:
        return len(self.kept)

    def add(self, line: StepLine) -> None:
        if line.text is not None:
            self.pieces[len(self.kept)] = line.text
        values = {name: getattr(line, name) for name in TraceStep.model_fields}
        self.kept.append(TraceStep.model_construct(**values))

    def recording(self, texts: dict[int, str]) -> Recording:
        header, end, kept, pieces = self.header, self.end, self.kept, self.pieces
        if end and end.tail and kept:
            last = len(kept) - 1
            own = pieces.get(last, texts.get(kept[last].token, ""))
            pieces = {**pieces, last: own + end.tail}
        final_phase = end.final_phase if end else kept[-1].phase if kept else "prompt"
        counts = end.counts if end else counts_of(kept)
        trace = Trace(
            engine=header.engine,
            spec=header.spec,
            sample=header.sample,
            same_noise=end.same_noise if end else False,
            prompt_ids=header.prompt_ids,
            final_phase=final_phase,
            counts=counts,
            steps=tuple(kept),
            dropped_steps=end.dropped_steps if end else 0,
            never_opened=end is not None and never_opened(header.spec, counts, final_phase),
            tripped=end.tripped if end else None,
        )
        return Recording(
            trace=trace,
            model=header.model,
            prompt=header.prompt,
            texts=texts,
            pieces=pieces,
            complete=end is not None,
        )


class _Added:
    """A trace of which the sums are kept."""

    def __init__(self, header: Header) -> None:
        self._engine, self._prompt = header.engine[:PROMPT], header.prompt[:PROMPT]
        self._spec = header.spec
        self._tally = Tally()
        self.end: End | None = None

    @property
    def steps(self) -> int:
        return self._tally.steps

    def add(self, line: StepLine) -> None:
        self._tally.add(line)

    def summarized(self) -> Summarized:
        end = self.end
        counts = end.counts if end else self._tally.counts()
        final_phase = end.final_phase if end else self._tally.phase
        dropped = end.dropped_steps if end else 0
        figures = self._tally.summary(self._spec, counts, final_phase, dropped)
        return Summarized(self._engine, self._prompt, end is not None, figures)


_One = TypeVar("_One", _Whole, _Added)


def read_traces(path: str | Path) -> tuple[Recording, ...]:
    """Every trace of a file.

    Raises
    ------
    TraceFileError
        The file was cut off, is from a newer version, or is not a trace. What came before the fault
        is in ``error.recordings``; :func:`read_what_is_there` returns it instead of raising.
    OSError
        The file cannot be read, or is none: a pipe, a device, a folder.
    """
    found = read_what_is_there(path)
    if found.error is not None:
        raise found.error
    return found.recordings


def read_what_is_there(path: str | Path) -> TraceFile:
    """The traces of a file up to its first fault, and the fault."""
    reading = _Reading(_Whole, Path(path))
    message = reading.run()
    recordings = tuple(one.recording(reading.texts) for one in reading.traces.values())
    return TraceFile(recordings, TraceFileError(message, recordings) if message else None)


def read_summaries(path: str | Path) -> tuple[list[Summarized], TraceFileError | None]:
    """The figures of each trace of a file up to its first fault, and the fault.

    No step is kept, so that a file may be longer than memory.
    """
    reading = _Reading(_Added, Path(path))
    message = reading.run()
    found = [one.summarized() for one in reading.traces.values()]
    return found, TraceFileError(message) if message else None


class _Reading(Generic[_One]):
    """One pass through a file."""

    def __init__(self, kind: type[_One], path: Path) -> None:
        self._kind: type[_One] = kind
        self._path = path
        self.traces: dict[int, _One] = {}
        self.texts: dict[int, str] = {}

    def run(self) -> str:
        """Read; returns what is wrong, or nothing."""
        fault = ""
        try:
            for number, line in _lines(self._path):
                self._take(number, line)
        except TraceFileError as error:
            fault = str(error)
        cut = [number for number, one in self.traces.items() if one.end is None]
        if not fault and cut:
            fault = (
                f"the file ends before trace {_named(cut)} does: its writer was stopped, or the"
                " file was cut off between two lines"
            )
        if not fault:
            return ""
        shown = sum(one.steps for one in self.traces.values())
        kept = f" Before it: {len(self.traces)} traces, {shown} steps." if self.traces else ""
        return f"{self._path.name}: {fault}.{kept}"

    def _take(self, number: int, line: bytes) -> None:
        if number == 1 or KIND.encode() in line[:64]:
            _check_header(number, line)
        try:
            parsed = LINE.validate_json(line)
        except ValidationError as error:
            raise TraceFileError(f"line {number} is no line of a trace: {_said(error)}") from None
        if isinstance(parsed, StepLine):
            self._opened(number, parsed.trace).add(parsed)
        elif isinstance(parsed, End):
            self._opened(number, parsed.trace).end = parsed
        elif isinstance(parsed, Header):
            if parsed.trace in self.traces:
                raise TraceFileError(f"line {number} opens trace {parsed.trace} a second time")
            self.traces[parsed.trace] = self._kind(parsed)
        elif isinstance(parsed, TokenTexts) and self._kind is _Whole:
            self.texts.update(parsed.texts)

    def _opened(self, number: int, trace: int) -> _One:
        one = self.traces.get(trace)
        if one is None or one.end is not None:
            state = "was not opened" if one is None else "has ended"
            raise TraceFileError(f"line {number} belongs to trace {trace}, which {state}")
        return one


def _named(numbers: list[int]) -> str:
    first = ", ".join(map(str, numbers[:MAX_NAMED]))
    more = len(numbers) - MAX_NAMED
    return f"{first} and {more:,} more" if more > 0 else first


def _said(error: ValidationError) -> str:
    """The first problem; keys and values of the file are in it, so it is cut."""
    first = error.errors(include_url=False, include_input=False)[0]
    field = ".".join(str(part) for part in first["loc"])
    text = f"{field + ': ' if field else ''}{first['msg']}"
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    empty = True
    with open_regular(path) as file:
        for number in range(1, 1 << 62):
            line = file.readline(MAX_LINE_BYTES + 1)
            if not line:
                break
            empty = False
            if number == 1 and line.startswith(b"\x1f\x8b"):
                raise TraceFileError("the file is compressed; unpack it first: gunzip -k FILE")
            if len(line) > MAX_LINE_BYTES:
                raise TraceFileError(
                    f"line {number} is longer than {MAX_LINE_BYTES:,} bytes; this is no trace file"
                )
            if not line.endswith(b"\n"):
                raise TraceFileError(f"the file was cut in the middle of line {number}")
            yield number, line
    if empty:
        raise TraceFileError("the file is empty; a trace begins with a header line")


def _check_header(number: int, line: bytes) -> None:
    try:
        header = json.loads(line)
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict) or header.get("kind") != KIND:
        if number > 1:
            return
        raise TraceFileError(
            f'not a trace file: line 1 must be a JSON object with "kind": "{KIND}"'
        )
    version = header.get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise TraceFileError(
            f"line {number} is of trace schema {str(version)[:20]}; this version reads up to"
            f" {SCHEMA_VERSION}: read the file with the version that wrote it, or a later one"
        )
