"""Errors that say which field, what was got, and what is allowed."""

import re
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pydantic import BaseModel, ValidationError

from tokenlens.spec.hints import (
    field_hint,
    method_hint,
    number_hint,
    text_hint,
    unnamed_hint,
)

MAX_SHOWN = 80
"""Characters of a wrong value that an error repeats."""

MAX_FIELD = 64
"""Characters of a field's name; a longer one was made up by whoever sent it."""

MAX_ALLOWED = 1000
"""Characters of what is allowed."""

MAX_PROBLEMS = 10
"""Wrong fields that an error names; the others are counted."""

MAX_MESSAGE = 6000
"""Characters of a whole message."""

_LEVELS = (True, False, "off", "summary", "full")
"""What people write for a trace that is no more than its level."""

_METHOD = re.compile(r"methods(\[\d+\])?")

# A few lines of YAML can stand for a list of billions, which must never be written out.
_REPR = reprlib.Repr()
_REPR.maxlevel = 4
_REPR.maxlist = _REPR.maxtuple = _REPR.maxdict = _REPR.maxset = _REPR.maxfrozenset = 12
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 2 * MAX_SHOWN


@dataclass(frozen=True)
class SpecProblem:
    """One wrong field."""

    field: str
    got: str
    allowed: str

    def __post_init__(self) -> None:
        # Together they repeat no more of a made-up name than of a wrong value.
        made_up = len(self.field) > MAX_FIELD
        shown = MAX_SHOWN // 2 if made_up else MAX_SHOWN
        object.__setattr__(self, "field", cut(self.field, shown))
        object.__setattr__(self, "got", cut(self.got, shown))
        object.__setattr__(self, "allowed", cut(self.allowed, MAX_ALLOWED))

    def __str__(self) -> str:
        return f"{self.field}: got {self.got}; allowed: {self.allowed}"


class SpecError(ValueError):
    """A spec that cannot be carried out. ``problems`` has one entry for each wrong field.

    Parameters
    ----------
    more
        Wrong fields beyond those.
    """

    def __init__(self, problems: Iterable[SpecProblem], more: int = 0) -> None:
        given = tuple(problems)
        self.problems = given[:MAX_PROBLEMS]
        more += len(given) - len(self.problems)
        lines = [str(problem) for problem in self.problems]
        if more:
            lines.append(f"and {more} more")
        text = "\n".join(lines)
        super().__init__(text if len(text) <= MAX_MESSAGE else text[: MAX_MESSAGE - 1] + "…")

    @classmethod
    def of(cls, field: str, got: object, allowed: str) -> "SpecError":
        """An error about one field."""
        return cls([SpecProblem(field, shorten(got), allowed)])

    @classmethod
    def from_validation(cls, model: type[BaseModel], error: ValidationError) -> "SpecError":
        """Translate pydantic's error, with what is allowed read off the model's JSON Schema."""
        schema = _schema_of(model)
        found: dict[SpecProblem, None] = {}
        lines = error.errors(include_url=False)
        for index, line in enumerate(lines):
            if len(found) == MAX_PROBLEMS:
                return cls(found, more=len(lines) - index)
            # Each branch of a union reports the same wrong value.
            found[_translate(schema, dict(line))] = None
        return cls(found)


@lru_cache(maxsize=16)
def _schema_of(model: type[BaseModel]) -> Mapping[str, Any]:
    # Some fifty milliseconds for a spec, and a client can make errors as fast as he writes.
    return model.model_json_schema()


def cut(text: str, limit: int = MAX_SHOWN) -> str:
    """A text of one line, cut so that an error stays readable."""
    text = text if len(text) <= limit else text[: limit - 1] + "…"
    return text if text.isprintable() else "".join(c if c.isprintable() else "�" for c in text)


def shorten(value: object) -> str:
    """``repr`` of a value, cut so that an error stays readable."""
    try:
        text = _REPR.repr(value)
    except Exception:  # no integers of more than 4300 digits; a value may be of any class
        text = f"{type(value).__name__} that is too long to show"
    return cut(text)


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
        allowed = _hinted(f"one of {', '.join(known)}", hint)
        return SpecProblem(field, f"the unknown field {shorten(path[-1])}", allowed)
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
        return SpecProblem(f"{field}.{name}", got, _hinted(f"one of {tags}", hint))
    if kind == "not_allowed":
        return SpecProblem(field, shorten(line["input"]), context["allowed"])
    value = line["input"]
    if _METHOD.fullmatch(field) and isinstance(value, str):
        hint = method_hint(value, _methods(schema))
        hint = f"{hint.replace('{', '[{', 1)}]" if field == "methods" and hint else hint
    elif field == "methods" and isinstance(value, Mapping):
        hint = "a mapping has its place inside of the list: [{method: ...}]"
    elif field == "trace" and isinstance(value, (bool, str)) and value in _LEVELS:
        level = repr("off") if value in (False, "off") else "full" if value is True else value
        hint = f"say {{level: {level}}}"
    elif kind in ("string_type", "literal_error"):
        hint = text_hint(value)
    else:
        hint = number_hint(value) if kind in ("int_type", "float_type") else ""
    return SpecProblem(field or "spec", shorten(value), _hinted(_allowed(schema, node), hint))


def _hinted(allowed: str, hint: str) -> str:
    return f"{hint}; {allowed}" if hint else allowed


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
    return node, "anyOf" not in node


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


def _bounds(node: Mapping[str, Any]) -> str:
    kind = {
        "integer": "an integer", "number": "a finite number", "string": "a text", "null": "null",
        "array": "a list", "object": "a mapping", "boolean": "true or false",
    }.get(node.get("type", ""), "a value of the documented type")  # fmt: skip
    parts = [
        f"{words} {node[key]:,}" if abs(node[key]) >= 10_000 else f"{words} {node[key]}"
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
