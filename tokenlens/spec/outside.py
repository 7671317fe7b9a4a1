"""What a config from outside the package must be: bounded in every part, as ours are.

Whatever a client writes is held to these bounds before it costs anything, and no number leaves
them that float32 arithmetic does not hold.
"""

import math
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic import ValidationError
from pydantic.json_schema import PydanticJsonSchemaWarning

from tokenlens.spec.base import Excludes, MethodBase, Recipe, Requires, StrictModel
from tokenlens.spec.installed import NAME
from tokenlens.spec.registry import METHOD_CONFIGS, models_of

RESERVED = frozenset({"preset", "seed", "phase", "trace", "methods", "method", "gate"})
"""Names that mean something else in a request's flat arguments, or in the core."""

LARGEST = 1e30
"""The largest bound of a number: its square is the last that is sure to fit float32's range."""

MAX_TEXT, MAX_ITEMS, MAX_FIELDS = 4096, 4096, 64


def faults(config: Any, name: str) -> Iterator[str]:
    """What is wrong with a config class, each as ``got ...; allowed: ...``."""
    if not (isinstance(config, type) and issubclass(config, MethodBase)):
        yield f"got the config {config!r}; allowed: a subclass of tokenlens.spec.MethodBase"
        return
    if not NAME.fullmatch(name) or name in RESERVED:
        yield (
            f"got the name {name!r}; allowed: lower-case letters, digits and underscores, at most"
            f" 40, none of {', '.join(sorted(RESERVED))}"
        )
    info = config.model_fields.get("method")
    if info is None or info.default != name or get_args(info.annotation) != (name,):
        yield f"got no field method of its own; allowed: method: Literal[{name!r}] = {name!r}"
        return
    known = METHOD_CONFIGS.get(name)
    if known is not None and known is not config:
        yield f"got the name of a method that is there, {known.__qualname__}; allowed: another"
    if len(config.model_fields) > MAX_FIELDS:
        yield f"got {len(config.model_fields)} fields; allowed: at most {MAX_FIELDS}"
    for model in (config, *models_of(config)):
        for key, wanted in StrictModel.model_config.items():
            if model.model_config.get(key) != wanted:
                got = model.model_config.get(key)
                yield f"got {model.__name__} with {key} = {got!r}; allowed: {wanted!r}"
    yield from _wrong_declarations(config)
    try:
        with warnings.catch_warnings():
            # A default that JSON does not have is left out with a warning.
            warnings.simplefilter("error", PydanticJsonSchemaWarning)
            schema = config.model_json_schema()
    except Exception as error:  # the author's own types
        yield f"got no JSON Schema ({error}); allowed: numbers, texts, lists and models of them"
        return
    yield from _unbounded(schema, schema)
    yield from _wrong_defaults(config)


def _unbounded(schema: Mapping[str, Any], node: Any, place: str = "") -> Iterator[str]:
    """Fields of a schema that hold a number, a text or a list of any size."""
    properties = node.get("properties")
    if properties is not None:
        for key, below in properties.items():
            yield from _unbounded(schema, below, f"{place}.{key}" if place else key)
        return
    if "$ref" in node:
        below = schema["$defs"][node["$ref"].rsplit("/", 1)[-1]]
        if place.count(".") > 8:
            yield f"{place}: got models inside of one another; allowed: 8 levels"
            return
        yield from _unbounded(schema, below, place)
        return
    if "anyOf" in node or "oneOf" in node:
        for option in node.get("anyOf", node.get("oneOf")):
            yield from _unbounded(schema, option, place)
        return
    if "const" in node or "enum" in node:
        return
    kind = node.get("type")
    if kind in ("number", "integer"):
        low = node.get("minimum", node.get("exclusiveMinimum"))
        high = node.get("maximum", node.get("exclusiveMaximum"))
        bounds = [bound for bound in (low, high) if isinstance(bound, (int, float))]
        if len(bounds) < 2 or not all(math.isfinite(b) and abs(b) <= LARGEST for b in bounds):
            yield f"{place}: got a number without bounds; allowed: Field(..., ge=..., le=...)"
    elif kind == "string":
        if node.get("maxLength", MAX_TEXT + 1) > MAX_TEXT:
            yield f"{place}: got a text of any length; allowed: max_length up to {MAX_TEXT}"
    elif kind == "array":
        pairs = node.get("prefixItems", [])
        if node.get("maxItems", MAX_ITEMS + 1) > MAX_ITEMS:
            yield f"{place}: got a list of any length; allowed: max_length up to {MAX_ITEMS}"
        for below in (*pairs, *([node["items"]] if isinstance(node.get("items"), dict) else [])):
            yield from _unbounded(schema, below, f"{place}[]")
        if not pairs and not isinstance(node.get("items"), dict):
            yield f"{place}: got a list of anything; allowed: a list of one kind of value"
    elif kind not in ("boolean", "null"):
        yield f"{place}: got a field of any value; allowed: a number, a text, a list, a model"


def _wrong_declarations(config: type[MethodBase]) -> Iterator[str]:
    """What the class says of how it goes with others, in a form that nobody could read."""
    kinds = {"family": str, "requires": Requires, "excludes": Excludes}
    for name, kind in kinds.items():
        found = getattr(config, name)
        if not (isinstance(found, tuple) and all(isinstance(one, kind) for one in found)):
            yield f"{name}: got {found!r:.80}; allowed: a tuple of {kind.__name__}"
    for name, one in (("published", object), ("recipes", Recipe)):
        found = getattr(config, name)
        if not (isinstance(found, Mapping) and all(isinstance(v, one) for v in found.values())):
            yield f"{name}: got {found!r:.80}; allowed: a mapping"


def _wrong_defaults(config: type[MethodBase]) -> Iterator[str]:
    """Defaults, of the config and of its published profile, that its own fields refuse."""
    try:
        given = {
            key: info.get_default(call_default_factory=True)
            for key, info in config.model_fields.items()
            if not info.is_required() and key != "quirks"
        }
    except Exception as error:  # the author's factory
        yield f"got {type(error).__name__} ({error}) from a default; allowed: a value"
        return
    required = {key for key, info in config.model_fields.items() if info.is_required()}
    for values in (given, {**given, **config.published, "profile": "published"}):
        try:
            made = config.model_validate(values)
        except ValidationError as error:
            for line in error.errors(include_url=False):
                if line["loc"] and line["loc"][0] not in required:
                    where = ".".join(map(str, line["loc"]))
                    yield f"{where}: got a default of {line['input']!r:.80}; allowed: {line['msg']}"
        except Exception as error:  # the author's validator
            yield f"got {type(error).__name__} ({error}) from a validator; allowed: a ValueError"
        else:
            yield from _wrong_answers(made)


def _wrong_answers(config: MethodBase) -> Iterator[str]:
    """What a config of defaults says of itself, where the author has overridden that."""
    kinds: dict[str, type | tuple[type, ...]] = {
        "is_latent": bool,
        "is_budget": bool,
        "families": frozenset,
        "uses_seed": bool,
        "from_first_token": bool,
        "forced_end_part": str,
        "forced_text": (str, type(None)),
        "entries": tuple,
        "needs": Mapping,
    }
    for name, kind in kinds.items():
        try:
            found = getattr(config, name)
            found = found() if name in ("entries", "needs") else found
        except Exception as error:  # the author's
            yield f"{name}: got {type(error).__name__} ({error}); allowed: an answer"
            continue
        if not isinstance(found, kind):
            yield f"{name}: got {found!r:.80}; allowed: as in tokenlens.spec.MethodBase"
    try:
        same = type(config).model_validate_json(config.model_dump_json()) == config
    except Exception as error:  # the author's types, again
        yield f"got {type(error).__name__} ({error!s:.200}) from its own JSON; allowed: itself"
        return
    if not same:
        yield "got another config from its own JSON; allowed: itself"
