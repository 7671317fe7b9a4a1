"""The reference of methods and fields, read off the configs: ``docs/reference/methods.md``.

Knows nothing that the configs do not say; a field's meaning stands beside the field.
"""

import inspect
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from tokenlens.spec.base import MethodBase
from tokenlens.spec.decoding import DecodingSpec
from tokenlens.spec.errors import _allowed as describe
from tokenlens.spec.registry import METHOD_CONFIGS, models_in, models_of

HEAD = """# Methods and their fields

Generated from the configs by `python -m tokenlens.reference`; a test compares the two. *published*
is what `profile: published` sets where it differs from the default. Of a group of fields only what
differs from its own defaults is shown. Temperatures divide logits, entropies are in nats unless a
field says otherwise, counts are in tokens.
"""


class FieldRow(NamedTuple):
    """One field of a config, as texts."""

    name: str
    meaning: str
    allowed: str
    default: str
    published: str


def rows(config: type[BaseModel], published: Mapping[str, Any] | None = None) -> list[FieldRow]:
    """The fields of one config, without its name, its profile, and its quirks.

    Parameters
    ----------
    published
        What the profile of that name sets, where the config does not say it itself.
    """
    schema = config.model_json_schema()
    if published is None:
        published = getattr(config, "published", {})
    return [
        FieldRow(
            name,
            info.description or "",
            _linked(describe(schema, _without_meaning(schema["properties"][name])), info),
            _default(info),
            _value(published[name]) if name in published else "",
        )
        for name, info in config.model_fields.items()
        if name not in ("method", "profile", "quirks")
    ]


def _linked(allowed: str, info: FieldInfo) -> str:
    """What is allowed, with links to the fields of the mappings."""
    groups = ", ".join(
        f"[{model.__name__}](#{model.__name__.lower()})" for model in models_in(info.annotation)
    )
    return allowed.replace("a mapping", f"a mapping: {groups}") if groups else allowed


def _source(config: type[BaseModel]) -> str:
    """Where the method is from, as the module of its config says in brackets."""
    module = inspect.getmodule(config)
    found = re.search(r"\(([^)]*(?:arXiv|https?:)[^)]*)\)", (module and module.__doc__) or "")
    if not issubclass(config, MethodBase) or not found or found[1] in (config.__doc__ or ""):
        return ""
    return f" Source: {found[1]}."


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


def _table(found: list[FieldRow]) -> list[str]:
    lines = ["| field | meaning | allowed | default | published |", "|---|---|---|---|---|"]
    for row in found:
        default = f"`{_cell(row.default)}`" if row.default else ""
        published = f"`{_cell(row.published)}`" if row.published else ""
        cells = (f"`{row.name}`", _cell(row.meaning), _cell(row.allowed), default, published)
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _section(title: str, config: type[BaseModel]) -> list[str]:
    body = inspect.getdoc(config) or ""
    fields = _table(rows(config)) if rows(config) else ["No fields."]
    lines = [f"## {title}", "", body.split("\n\n")[0] + _source(config), "", *fields, ""]
    quirks = config.quirks_model() if issubclass(config, MethodBase) else None
    if quirks is not None:
        set_by = getattr(config, "published", {}).get("quirks", {})
        lines += ["In `quirks`:", "", *_table(rows(quirks, set_by)), ""]
    return lines


def markdown() -> str:
    """The whole page."""
    lines = [HEAD]
    shared: dict[str, type[BaseModel]] = {}
    for name, config in METHOD_CONFIGS.items():
        lines += _section(name, config)
        shared.update(
            {
                model.__name__: model
                for model in models_of(config)
                if model is not config.quirks_model()
            }
        )
    for held in models_of(DecodingSpec):
        if not issubclass(held, MethodBase) and held.__name__ not in shared:
            shared[held.__name__] = held
    lines += ["# What several fields hold", ""]
    for name, model in shared.items():
        lines += _section(name, model)
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    print(markdown(), end="")
