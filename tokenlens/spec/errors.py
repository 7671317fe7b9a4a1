"""Pydantic's errors in our words: which field, what was got, and what is allowed.

The errors themselves are in :mod:`tokenlens.errors`.
"""

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from pydantic import BaseModel, ValidationError

from tokenlens.errors import (
    MAX_FIELD,
    MAX_MESSAGE,
    MAX_PROBLEMS,
    MAX_SHOWN,
    SpecError,
    SpecProblem,
    cut,
    shorten,
)
from tokenlens.spec.hints import (
    field_hint,
    method_hint,
    number_hint,
    text_hint,
    unnamed_hint,
)

__all__ = [
    "MAX_FIELD",
    "MAX_MESSAGE",
    "MAX_PROBLEMS",
    "MAX_SHOWN",
    "SpecError",
    "SpecProblem",
    "cut",
    "shorten",
    "translated",
]

_LEVELS = (True, False, "off", "summary", "full")
"""What people write for a trace that is no more than its level."""

_METHOD = re.compile(r"methods(\[\d+\])?")


def translated(model: type[BaseModel], error: ValidationError) -> SpecError:
    """Pydantic's error as ours, with what is allowed read off the model's JSON Schema."""
    schema = _schema_of(model)
    found: dict[SpecProblem, None] = {}
    lines = error.errors(include_url=False)
    for index, line in enumerate(lines):
        if len(found) == MAX_PROBLEMS:
            return SpecError(found, more=len(lines) - index)
        # Each branch of a union reports the same wrong value.
        found[_translate(schema, dict(line))] = None
    return SpecError(found)


@lru_cache(maxsize=16)
def _schema_of(model: type[BaseModel]) -> Mapping[str, Any]:
    # Some fifty milliseconds for a spec, and a client can make errors as fast as he writes.
    return model.model_json_schema()


def forget_schemas() -> None:
    """Read the schemas again: there are other methods."""
    _schema_of.cache_clear()


def _translate(schema: Mapping[str, Any], line: Mapping[str, Any]) -> SpecProblem:
    kind, context = line["type"], line.get("ctx", {})
    if kind == "method_combination":
        return SpecProblem("methods", context["got"], context["allowed"])
    path = list(line["loc"])
    node, field, parent, shown = schema, "", schema, True
    for step in path:
        parent, (node, shown) = node, _descend(schema, node, step)
        if shown:
            field += f"[{step}]" if isinstance(step, int) else f".{step}" if field else str(step)
    if kind == "inconsistent":
        return SpecProblem(field, context["got"], context["allowed"])
    if kind == "extra_forbidden":
        options = (parent, *_resolve(schema, parent).get("anyOf", ()))
        models = [_resolve(schema, option).get("properties", ()) for option in options]
        known = sorted({name for model in models for name in model})
        # Below an optional model the schema does not lead to an unknown field.
        field += "" if shown else f".{path[-1]}"
        inner = _inner(schema) if len(path) == 1 else ()
        hint = field_hint(str(path[-1]), known, _methods(schema), inner)
        allowed = f"one of {', '.join(known)}"
        return SpecProblem(field, f"the unknown field {shorten(path[-1])}", allowed, hint)
    if kind == "invalid_key":
        return SpecProblem(field, f"the key {shorten(line['input'])}", "a text as a field's name")
    if kind == "missing":
        return SpecProblem(field, "nothing", _allowed(schema, node))
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        got = shorten(context.get("tag", "no method name"))
        discriminator = _resolve(schema, node).get("discriminator", {})
        tags = str(context.get("expected_tags", "")) or ", ".join(
            sorted(discriminator.get("mapping", {}))
        )
        name = str(context.get("discriminator", "'method'")).strip("'")
        hint = method_hint(context.get("tag"), _methods(schema)) or unnamed_hint(
            line["input"], _methods(schema)
        )
        return SpecProblem(f"{field}.{name}", got, f"one of {tags}", hint)
    if kind == "not_allowed":
        return SpecProblem(field, shorten(line["input"]), context["allowed"])
    value = line["input"]
    if _METHOD.fullmatch(field) and isinstance(value, str):
        hint = method_hint(value, _methods(schema))
        if field == "methods" and hint.startswith("say {"):
            hint = f"{hint.replace('{', '[{', 1)}]"
    elif field == "methods" and isinstance(value, Mapping):
        hint = "a mapping has its place inside of the list: [{method: ...}]"
    elif field == "trace" and isinstance(value, (bool, str)) and value in _LEVELS:
        level = repr("off") if value in (False, "off") else "full" if value is True else value
        hint = f"say {{level: {level}}}"
    elif kind in ("string_type", "literal_error"):
        hint = text_hint(value)
    else:
        hint = number_hint(value) if kind in ("int_type", "float_type") else ""
    return SpecProblem(field or "spec", shorten(value), _allowed(schema, node), hint)


def _inner(schema: Mapping[str, Any]) -> set[str]:
    """The fields of all methods."""
    items = schema.get("properties", {}).get("methods", {}).get("items", {})
    configs = items.get("discriminator", {}).get("mapping", {}).values()
    return {
        name for config in configs for name in _resolve(schema, {"$ref": config})["properties"]
    } - {"method"}


def _methods(schema: Mapping[str, Any]) -> list[str]:
    """Names of all methods, as far as the schema has some."""
    items = schema.get("properties", {}).get("methods", {}).get("items", {})
    return sorted(items.get("discriminator", {}).get("mapping", {}))


def _resolve(schema: Mapping[str, Any], node: Mapping[str, Any]) -> Mapping[str, Any]:
    while "$ref" in node:
        node = schema["$defs"][node["$ref"].rsplit("/", 1)[-1]]
    return node


def _descend(
    schema: Mapping[str, Any], node: Mapping[str, Any], step: int | str
) -> tuple[Mapping[str, Any], bool]:
    """The schema below ``step``, and whether the step is part of the field's name."""
    node = _resolve(schema, node)
    if isinstance(step, int):
        options = [node, *(_resolve(schema, option) for option in node.get("anyOf", ()))]
        pairs = next((option["prefixItems"] for option in options if "prefixItems" in option), ())
        # A key that is a number is a step, too.
        if 0 <= step < len(pairs):
            return pairs[step], True
        return next((option["items"] for option in options if "items" in option), {}), True
    if "properties" in node and step in node["properties"]:
        return node["properties"][step], True
    mapping = node.get("discriminator", {}).get("mapping", {})
    if step in mapping:
        return {"$ref": mapping[step]}, False
    for option in node.get("anyOf", ()):
        resolved = _resolve(schema, option)
        if step in resolved.get("properties", {}):
            return resolved["properties"][step], True
    # A branch of a union (pydantic names it by its type): not part of the field's name.
    return node, "anyOf" not in node and node.get("type") in (None, "object")


def _allowed(schema: Mapping[str, Any], node: Mapping[str, Any]) -> str:
    node = _resolve(schema, node)
    if "anyOf" in node:
        options = [_allowed(schema, option) for option in node["anyOf"]]
        text = " or ".join(dict.fromkeys(option for option in options if option))
    elif "const" in node:
        text = repr(node["const"])
    elif "enum" in node:
        text = "one of " + ", ".join(repr(value) for value in node["enum"])
    elif "oneOf" in node:
        text = "one of " + ", ".join(sorted(node.get("discriminator", {}).get("mapping", {})))
    else:
        text = _bounds(node)
    description = node.get("description", "")
    # A model's docstring is no hint about a value; a field's description is.
    return f"{text} ({description})" if description and "properties" not in node else text


def _number(value: float) -> str:
    if isinstance(value, float):
        return f"{value:,.7g}"
    return f"{value:,}" if abs(value) >= 10_000 else str(value)


def _bounds(node: Mapping[str, Any]) -> str:
    kind = {
        "integer": "an integer", "number": "a finite number", "string": "a text", "null": "null",
        "array": "a list", "object": "a mapping", "boolean": "true or false",
    }.get(node.get("type", ""), "a value of the documented type")  # fmt: skip
    parts = [
        f"{words} {_number(node[key])}"
        for key, words in (
            ("minimum", "at least"),
            ("exclusiveMinimum", "above"),
            ("maximum", "at most"),
            ("exclusiveMaximum", "below"),
            ("minLength", "of length at least"),
            ("maxLength", "of length at most"),
            ("minItems", "of length at least"),
            ("maxItems", "of length at most"),
        )
        if key in node
    ]
    return f"{kind} {' and '.join(parts)}" if parts else kind
