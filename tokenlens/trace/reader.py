"""Reads trace files, and says what is wrong with one without hiding what is right."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from tokenlens.trace.lines import (
    KIND,
    LINE,
    MAX_LINE_BYTES,
    End,
    Header,
    Recording,
    StepLine,
    Texts,
    counts_of,
)
from tokenlens.trace.records import SCHEMA_VERSION, Trace, TraceStep


class TraceFileError(ValueError):
    """A file that is not a trace, or not all of one.

    Parameters
    ----------
    recordings
        Everything before the fault.
    """

    def __init__(self, message: str, recordings: tuple[Recording, ...] = ()) -> None:
        super().__init__(message)
        self.recordings = recordings


class TraceFile(NamedTuple):
    """What a file held, and what was wrong with it (``None``: nothing)."""

    recordings: tuple[Recording, ...]
    error: TraceFileError | None


class _Open:
    def __init__(self, header: Header) -> None:
        self.header, self.end = header, None
        self.steps: list[TraceStep] = []

    end: End | None


def read_traces(path: str | Path) -> tuple[Recording, ...]:
    """Every trace of a file.

    Raises
    ------
    TraceFileError
        The file was cut off, is from a newer version, or is not a trace. What came before the fault
        is in ``error.recordings``; :func:`read_what_is_there` returns it instead of raising.
    OSError
        The file cannot be read.
    """
    found = read_what_is_there(path)
    if found.error is not None:
        raise found.error
    return found.recordings


def read_what_is_there(path: str | Path) -> TraceFile:
    """The traces of a file up to its first fault, and the fault."""
    traces: dict[int, _Open] = {}
    texts: dict[int, str] = {}
    fault = ""
    try:
        for number, line in _lines(Path(path)):
            _take(number, line, traces, texts)
    except TraceFileError as error:
        fault = str(error)
    cut = [str(number) for number, one in traces.items() if one.end is None]
    if not fault and cut:
        fault = (
            f"the file ends before trace {', '.join(cut)} does: its writer was stopped, or the"
            " file was cut off between two lines"
        )
    recordings = tuple(_recording(one, texts) for one in traces.values())
    if not fault:
        return TraceFile(recordings, None)
    shown = sum(len(one.steps) for one in traces.values())
    kept = f" Before it: {len(traces)} traces, {shown} steps." if traces else ""
    message = f"{Path(path).name}: {fault}.{kept}"
    return TraceFile(recordings, TraceFileError(message, recordings))


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    empty = True
    with path.open("rb") as file:
        for number in range(1, 1 << 62):
            line = file.readline(MAX_LINE_BYTES + 1)
            if not line:
                break
            empty = False
            if len(line) > MAX_LINE_BYTES:
                raise TraceFileError(
                    f"line {number} is longer than {MAX_LINE_BYTES:,} bytes; this is no trace file"
                )
            if not line.endswith(b"\n"):
                raise TraceFileError(f"the file was cut in the middle of line {number}")
            yield number, line
    if empty:
        raise TraceFileError("the file is empty; a trace begins with a header line")


def _take(number: int, line: bytes, traces: dict[int, _Open], texts: dict[int, str]) -> None:
    if number == 1 or KIND.encode() in line[:64]:
        _check_header(number, line)
    try:
        parsed = LINE.validate_json(line)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise TraceFileError(
            f"line {number} is no line of a trace: {field + ': ' if field else ''}{first['msg']}"
        ) from None
    if isinstance(parsed, Texts):
        texts.update(parsed.texts)
    elif isinstance(parsed, Header):
        if parsed.trace in traces:
            raise TraceFileError(f"line {number} opens trace {parsed.trace} a second time")
        traces[parsed.trace] = _Open(parsed)
    else:
        one = traces.get(parsed.trace)
        if one is None or one.end is not None:
            state = "was not opened" if one is None else "has ended"
            raise TraceFileError(f"line {number} belongs to trace {parsed.trace}, which {state}")
        if isinstance(parsed, StepLine):
            values = {name: getattr(parsed, name) for name in TraceStep.model_fields}
            one.steps.append(TraceStep.model_construct(**values))
        else:
            one.end = parsed


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
            f"line {number} is of trace schema {version}; this version reads up to"
            f" {SCHEMA_VERSION}: read the file with the version that wrote it, or a later one"
        )


def _recording(one: _Open, texts: dict[int, str]) -> Recording:
    header, end, steps = one.header, one.end, one.steps
    trace = Trace(
        engine=header.engine,
        spec=header.spec,
        final_phase=end.final_phase if end else steps[-1].phase if steps else "prompt",
        counts=end.counts if end else counts_of(steps),
        steps=tuple(steps),
        dropped_steps=end.dropped_steps if end else 0,
    )
    return Recording(
        trace=trace,
        model=header.model,
        prompt=header.prompt,
        texts=texts,
        complete=end is not None,
    )
