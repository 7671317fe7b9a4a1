"""Specs from mappings, JSON and YAML."""

import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from yaml import YAMLError

from tokenlens.errors import SpecError, SpecProblem, cut
from tokenlens.spec.decoding import DecodingSpec
from tokenlens.spec.errors import translated
from tokenlens.spec.presets import preset
from tokenlens.spec.yaml_text import load_yaml

MAX_SPEC_BYTES = 64 * 1024
"""The largest spec, as text: a request's spec is a few hundred bytes."""

MAX_DEPTH = 16
"""The most values inside of one another; a spec has five."""


def parse_spec(data: "DecodingSpec | Mapping[str, Any] | str") -> DecodingSpec:
    """A spec from a mapping, a JSON text, or the name of a preset.

    A mapping may name a preset to start from: ``{"preset": "qwen3-soft", "seed": 3}``.

    Raises
    ------
    SpecError
        Names each wrong field, what was got, and what is allowed.
    """
    if isinstance(data, DecodingSpec):
        return data
    if isinstance(data, str):
        if not data.lstrip().startswith("{"):
            return preset(data.strip())
        data = _parse_json(data)
    if not isinstance(data, Mapping):
        raise SpecError.of("spec", data, "a mapping, a JSON object, or the name of a preset")
    check_size(data)
    values = dict(data)
    if "preset" in values:
        name = values.pop("preset")
        if not isinstance(name, str):
            raise SpecError.of("preset", name, "the name of a preset")
        values = {**preset(name).model_dump(), **values}
    try:
        return DecodingSpec.model_validate(values)
    except ValidationError as error:
        raise translated(DecodingSpec, error) from None


def load_spec(path: str | Path) -> DecodingSpec:
    """A spec from a ``.yaml``, ``.yml`` or ``.json`` file.

    Raises
    ------
    SpecError
        The file is not a spec. OSError where it cannot be read.
    """
    path = Path(path)
    if path.suffix not in (".yaml", ".yml", ".json"):
        raise SpecError.of("file", path.name, "a name that ends in .yaml, .yml or .json")
    try:
        # Some editors put a mark in front.
        text = _read(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SpecError.of("file", str(error), "text in UTF-8") from None
    if path.suffix == ".json":
        return parse_spec(_parse_json(text))
    try:
        data = load_yaml(text)
    except YAMLError as error:
        raise SpecError.of("file", " ".join(str(error).split()), "YAML") from None
    if isinstance(data, str):
        raise SpecError.of("file", data, "a mapping with the fields of a spec")
    return parse_spec(data)


def _read(path: Path) -> bytes:
    """A small regular file, whatever its size is said to be."""
    # Opening a pipe would wait for its writer. A device or a pipe behind a link is none either.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise SpecError.of("file", path.name, "a regular file, not a pipe or a device")
        content = file.read(MAX_SPEC_BYTES + 1)
        said = os.fstat(handle).st_size
    if len(content) > MAX_SPEC_BYTES:
        size = f"{max(said, len(content))} bytes"
        raise SpecError.of("file", size, f"at most {MAX_SPEC_BYTES}")
    return content


def _parse_json(text: str) -> Any:
    if len(text) > MAX_SPEC_BYTES:
        raise SpecError.of("spec", f"{len(text)} characters", f"at most {MAX_SPEC_BYTES}")
    size = len(text.encode("utf-8", "surrogatepass"))
    if size > MAX_SPEC_BYTES:
        raise SpecError.of("spec", f"{size} bytes", f"at most {MAX_SPEC_BYTES}")
    try:
        return json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise SpecError.of("spec", str(error), "a JSON object") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object in which a key stands once."""
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in values:
            raise ValueError(f"the key {cut(name)} a second time")
        values[name] = value
    return values


def check_size(data: Mapping[str, Any]) -> None:
    """Hold a mapping to the bounds that a text has: a client may send either.

    A few lines of YAML can stand for billions of values, so it stops where the bound is.
    """
    budget = MAX_SPEC_BYTES
    level: list[Any] = [data]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for value in level:
            if isinstance(value, str):
                budget -= len(value)
            elif isinstance(value, Mapping):
                budget -= sum(len(key) for key in value if isinstance(key, str)) + 2 * len(value)
                below += value.values() if len(value) <= budget else ()
            elif isinstance(value, (list, tuple, set, frozenset)):
                budget -= len(value)
                below += value if len(value) <= budget else ()
            elif isinstance(value, int):
                budget -= value.bit_length() // 4
            if budget < 0:
                allowed = f"at most {MAX_SPEC_BYTES} bytes"
                raise SpecError([SpecProblem("spec", "a larger one", allowed)])
        if not below:
            return
        budget -= len(below)
        level = below
    allowed = f"at most {MAX_DEPTH} levels of values"
    raise SpecError([SpecProblem("spec", "a deeper one", allowed)])
