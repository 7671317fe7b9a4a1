"""The reference of methods and fields, read off the configs: ``docs/reference/methods.md``.

Knows nothing that the configs do not say; a field's meaning stands beside the field.
"""

import inspect
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from tokenlens.spec.base import MethodBase, StrictModel
from tokenlens.spec.decoding import DecodingSpec
from tokenlens.spec.errors import _allowed as describe
from tokenlens.spec.registry import METHOD_CONFIGS

HEAD = """# Methods and their fields

Generated from the configs by `python -m tokenlens.reference`; a test compares the two. *published*
is what `profile: published` sets where it differs from the default. Temperatures divide logits,
entropies are in nats unless a field says otherwise, counts are in tokens.
"""


class FieldRow(NamedTuple):
    """One field of a config, as texts."""

    name: str
    meaning: str
    allowed: str
    default: str
    published: str


def models_of(config: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """The models that a config's fields hold, each once, in order."""
    for info in config.model_fields.values():
        for model in _models_in(info.annotation):
            yield model
            yield from models_of(model)


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if inspect.isclass(annotation) and issubclass(annotation, StrictModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)


def rows(config: type[BaseModel]) -> list[FieldRow]:
    """The fields of one config, without its name and its profile."""
    schema = config.model_json_schema()
    published: Mapping[str, Any] = getattr(config, "published", {})
    return [
        FieldRow(
            name,
            info.description or "",
            describe(schema, _without_meaning(schema["properties"][name])),
            _default(info),
            _value(published[name]) if name in published else "",
        )
        for name, info in config.model_fields.items()
        if name not in ("method", "profile")
    ]


def _without_meaning(node: Mapping[str, Any]) -> Mapping[str, Any]:
    return {key: value for key, value in node.items() if key != "description"}


def _default(info: FieldInfo) -> str:
    return "required" if info.is_required() else _value(info.get_default(call_default_factory=True))


def _value(value: Any) -> str:
    if isinstance(value, BaseModel):
        set_fields = value.model_dump(exclude_defaults=True)
        inside = ", ".join(f"{name}: {_value(one)}" for name, one in set_fields.items())
        return "{" + inside + "}"
    if isinstance(value, tuple | list):
        return "[" + ", ".join(_value(one) for one in value) + "]"
    if isinstance(value, str):
        return '"' + value.replace("\n", "\\n") + '"'
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def _table(config: type[BaseModel]) -> list[str]:
    lines = ["| field | meaning | allowed | default | published |", "|---|---|---|---|---|"]
    for row in rows(config):
        default = f"`{_cell(row.default)}`" if row.default else ""
        published = f"`{_cell(row.published)}`" if row.published else ""
        cells = (f"`{row.name}`", _cell(row.meaning), _cell(row.allowed), default, published)
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _section(title: str, config: type[BaseModel]) -> list[str]:
    body = inspect.getdoc(config) or ""
    fields = _table(config) if rows(config) else ["No fields."]
    return [f"## {title}", "", body.split("\n\n")[0], "", *fields, ""]


def markdown() -> str:
    """The whole page."""
    lines = [HEAD]
    shared: dict[str, type[BaseModel]] = {}
    for name, config in METHOD_CONFIGS.items():
        lines += _section(name, config)
        shared.update({model.__name__: model for model in models_of(config)})
    for model in models_of(DecodingSpec):
        if not issubclass(model, MethodBase) and model.__name__ not in shared:
            shared[model.__name__] = model
    lines += ["# What several fields hold", ""]
    for name, model in shared.items():
        lines += _section(name, model)
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    print(markdown(), end="")
