"""Rows of the files that people have: JSON, JSON Lines, CSV, Parquet, whatever the field names.

Knows no tasks: a row is a mapping, with the place that names it in errors.
"""

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from tokenlens.trace.files import open_regular

KINDS = ".jsonl, .json, .csv, .tsv or .parquet"
LONGEST_FIELD = 10_000_000
RUNS_CODE = (
    "public_test_cases", "private_test_cases", "starter_code", "canonical_solution", "entry_point",
    "test_list", "input_output",
)  # fmt: skip
"""Fields of LiveCodeBench, HumanEval, MBPP and APPS: their answers are programs."""


class QuestionRow(NamedTuple):
    """One row, and where it stands."""

    place: str
    fields: Mapping[str, Any]


def rows(path: Path) -> Iterator[QuestionRow]:
    """Every row of a file, by the ending of its name.

    Raises
    ------
    ValueError
        The file cannot be read as what its name says; names the place.
    ImportError
        It is Parquet, and neither pyarrow nor ``datasets`` is installed.
    """
    kind = path.suffix.lower()
    if kind == ".parquet":
        yield from _parquet(path)
        return
    if kind not in READERS:
        raise ValueError(f"data: got {path.name!r}; allowed: a file {KINDS}")
    with open_regular(path) as file:
        raw = file.read()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name}: got {error}; allowed: UTF-8") from None
    yield from READERS[kind](path.name, text)


def field(row: QuestionRow, names: Sequence[str]) -> str | None:
    """The first of several fields that has a value; upper and lower case, ``_`` and blanks are one.

    A whole number is written as one, whatever a table made of it.
    """
    keys = {_plain(key): key for key in row.fields}
    for name in names:
        value = row.fields.get(keys.get(_plain(name), ""))
        if value is None or value != value or (isinstance(value, str) and not value.strip()):
            continue
        if isinstance(value, bool | Mapping | list | tuple):
            return json.dumps(value)
        return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
    return None


def options(row: QuestionRow, names: Sequence[str]) -> list[str] | None:
    """The first of several fields that holds a list, also as JSON in a cell of a CSV."""
    keys = {_plain(key): key for key in row.fields}
    for name in names:
        value = row.fields.get(keys.get(_plain(name), ""))
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except ValueError:
                continue
        if isinstance(value, Mapping):
            # Hugging Face's ARC: {"text": [...], "label": [...]}.
            value = value.get("text")
        if isinstance(value, list | tuple) and value:
            return [str(one) for one in value]
    return None


def lacking(row: QuestionRow, what: str, names: Sequence[str]) -> ValueError:
    """The error for a row without a field: it names what was found."""
    found = ", ".join(map(repr, row.fields)) or "none"
    return ValueError(
        f"{row.place}: got no {what}; allowed: a value in one of the fields"
        f" {', '.join(map(repr, names))}. The fields found are {found}"
    )


def refuse_programs(row: QuestionRow) -> None:
    """Say no to questions whose answers are programs.

    Raises
    ------
    ValueError
        The row has the fields of such a set.
    """
    keys = {_plain(key) for key in row.fields}
    found = [name for name in RUNS_CODE if _plain(name) in keys]
    if found:
        raise ValueError(
            f"{row.place}: got {', '.join(map(repr, found))}: the answers are programs, and scoring"
            " them means to run what a model wrote, which tokenlens does not do; allowed: questions"
            " whose answers are compared. Generate with `tokenlens generate` or a server, and score"
            " in the sandbox of that benchmark"
        )


def _plain(name: str) -> str:
    return "".join(c for c in str(name).casefold() if c.isalnum())


def _mapping(place: str, value: Any) -> QuestionRow:
    if not isinstance(value, Mapping):
        raise ValueError(f"{place}: got {type(value).__name__}; allowed: a JSON object")
    return QuestionRow(place, value)


def _json_lines(name: str, text: str) -> Iterator[QuestionRow]:
    # Not splitlines(): a text may hold what that takes for the end of a line.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            place = f"{name}, line {number}"
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(
                    f"{place}: got {error}; allowed: a JSON object in each line"
                ) from None
            yield _mapping(place, value)


def _json(name: str, text: str) -> Iterator[QuestionRow]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        # Many files of JSON Lines are named so.
        yield from _json_lines(name, text)
        return
    if isinstance(value, Mapping):
        lists = [one for one in value.values() if isinstance(one, list)]
        if len(value) > 1 and len(lists) == len(value) and len(set(map(len, lists))) == 1:
            # A table, column by column.
            value = [dict(zip(value, cells)) for cells in zip(*lists)]
        elif len(lists) == 1 and all(isinstance(one, Mapping) for one in lists[0]):
            # {"data": [...]}, with whatever else beside it.
            value = lists[0]
        else:
            value = [value]
    if not isinstance(value, list):
        raise ValueError(f"{name}: got {type(value).__name__}; allowed: a list of JSON objects")
    for number, one in enumerate(value, 1):
        yield _mapping(f"{name}, entry {number}", one)


def _csv(delimiter: str) -> Callable[[str, str], Iterator[QuestionRow]]:
    def read(name: str, text: str) -> Iterator[QuestionRow]:
        before = csv.field_size_limit(LONGEST_FIELD)
        try:
            reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
            # All at once: the limit is of the whole process.
            found = [(reader.line_num, dict(row)) for row in reader]
        except csv.Error as error:
            raise ValueError(f"{name}: got {error}; allowed: a table with a header") from None
        finally:
            csv.field_size_limit(before)
        for line, row in found:
            place = f"{name}, line {line}"
            if None in row:
                raise ValueError(f"{place}: got more cells than the header has names")
            yield QuestionRow(place, row)

    return read


def _parquet(path: Path) -> Iterator[QuestionRow]:
    with open_regular(path):
        pass
    if find_spec("pyarrow") is not None:
        from pyarrow import ArrowException, parquet

        try:
            found = parquet.read_table(path).to_pylist()
        except ArrowException as error:
            raise ValueError(f"{path.name}: got {error}; allowed: a Parquet file") from None
    elif find_spec("datasets") is not None:
        from datasets import Dataset

        found = Dataset.from_parquet(str(path)).to_list()
    else:
        raise ImportError(
            f"{path.name} needs pyarrow or datasets: install one, or write the table as JSON Lines"
        )
    for number, row in enumerate(found, 1):
        yield QuestionRow(f"{path.name}, row {number}", row)


READERS: dict[str, Callable[[str, str], Iterator[QuestionRow]]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".csv": _csv(","),
    ".tsv": _csv("\t"),
}
