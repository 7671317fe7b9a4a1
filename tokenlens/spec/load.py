"""Specs from mappings, JSON and YAML."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from yaml.constructor import ConstructorError

from tokenlens.spec.decoding import DecodingSpec
from tokenlens.spec.errors import SpecError
from tokenlens.spec.presets import preset

MAX_SPEC_BYTES = 64 * 1024
"""The largest spec, as text: a request's spec is a few hundred bytes."""


class _Loader(yaml.SafeLoader):
    """YAML in which a key stands once: PyYAML keeps the last of two in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise ConstructorError(
                        None, None, f"the key {key.value} a second time", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


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
    values = dict(data)
    if "preset" in values:
        name = values.pop("preset")
        if not isinstance(name, str):
            raise SpecError.of("preset", name, "the name of a preset")
        values = {**preset(name).model_dump(), **values}
    try:
        return DecodingSpec.model_validate(values)
    except ValidationError as error:
        raise SpecError.from_validation(DecodingSpec, error) from None


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
    if path.stat().st_size > MAX_SPEC_BYTES:
        raise SpecError.of("file", f"{path.stat().st_size} bytes", f"at most {MAX_SPEC_BYTES}")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise SpecError.of("file", str(error), "text in UTF-8") from None
    if path.suffix == ".json":
        return parse_spec(_parse_json(text))
    try:
        data = yaml.load(text, Loader=_Loader)  # a SafeLoader
    except (yaml.YAMLError, RecursionError, ValueError, LookupError, AttributeError) as error:
        # PyYAML lets through what its constructors raise, e.g. on the date 2026-13-45.
        raise SpecError.of("file", " ".join(str(error).split()), "YAML") from None
    if isinstance(data, str):
        raise SpecError.of("file", data, "a mapping with the fields of a spec")
    return parse_spec(data)


def _parse_json(text: str) -> Any:
    if len(text) > MAX_SPEC_BYTES:
        raise SpecError.of("spec", f"{len(text)} characters", f"at most {MAX_SPEC_BYTES}")
    try:
        return json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise SpecError.of("spec", str(error), "a JSON object") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object in which a key stands once."""
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice} a second time")
    return values
