"""A spec as the extra arguments of a request, and back. Knows no engine.

vLLM carries ``SamplingParams.extra_args`` (``vllm_xargs`` over HTTP, where values are texts,
numbers or lists of them) to the engine, SGLang ``custom_params`` (any JSON object). A request says
what it wants in one of these ways::

    {"tokenlens": "qwen3-soft"}                                  a preset
    {"tokenlens": {"methods": [{"method": "soft_thinking"}]}}    a spec
    {"tokenlens": "{\\"methods\\": [{\\"method\\": \\"soft_thinking\\"}]}"}   a spec as JSON
    {"tokenlens_preset": "qwen3-soft", "tokenlens_seed": 7,      flat fields, dots below a method
     "tokenlens_soft_thinking.top_k": 10}

Flat fields may also stand beside ``tokenlens`` and change it.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from tokenlens.spec import METHOD_CONFIGS, DecodingSpec, SpecError, parse_spec
from tokenlens.spec.errors import shorten

KEY = "tokenlens"
PREFIX = "tokenlens_"
SAMPLE_KEY = "_tokenlens_sample"
"""Set by our front end for the second and later samples of one prompt (``n > 1``)."""

FLAT = ("preset", "seed")
GROUPS = ("trace", "phase")
MAX_PATH = 4


def asks(arguments: Mapping[str, Any] | None) -> bool:
    """Whether a request's extra arguments mention tokenlens at all."""
    return arguments is not None and any(
        key == KEY or key.startswith(PREFIX) for key in arguments if isinstance(key, str)
    )


def spec_of(arguments: Mapping[str, Any] | None) -> DecodingSpec | None:
    """The spec in a request's extra arguments, ``None`` if it has none.

    Raises
    ------
    SpecError
        Names the field as the client wrote it.
    """
    if not arguments or not asks(arguments):
        return None
    whole = arguments.get(KEY)
    flat = {key: value for key, value in arguments.items() if key.startswith(PREFIX)}
    if not flat:
        return _parse(whole)
    values: dict[str, Any] = {}
    if whole is not None:
        values = _parse(whole).model_dump()
    elif PREFIX + "preset" in flat:
        name = flat.pop(PREFIX + "preset")
        values = parse_spec({"preset": name}).model_dump()
    flat.pop(PREFIX + "preset", None)
    methods = {config["method"]: dict(config) for config in values.get("methods", ())}
    for key, value in sorted(flat.items()):
        path = key.removeprefix(PREFIX).split(".")
        _place(values, methods, path, value, key)
    values["methods"] = list(methods.values())
    return parse_spec(values)


def _parse(whole: Any) -> DecodingSpec:
    if isinstance(whole, str):
        return _parse_text(whole)
    if isinstance(whole, (Mapping, DecodingSpec)):
        return parse_spec(whole)
    raise SpecError.of(KEY, whole, "the name of a preset, a spec as JSON text, or a mapping")


@lru_cache(maxsize=256)
def _parse_text(text: str) -> DecodingSpec:
    return parse_spec(text)


def _place(
    values: dict[str, Any],
    methods: dict[str, dict[str, Any]],
    path: list[str],
    value: Any,
    key: str,
) -> None:
    """Put one flat field where it belongs."""
    head = path[0]
    if head in FLAT and len(path) == 1:
        values[head] = value
        return
    if len(path) < 2 or len(path) > MAX_PATH or not (head in GROUPS or head in METHOD_CONFIGS):
        known = ", ".join([*FLAT, *(f"{group}.FIELD" for group in GROUPS), "METHOD.FIELD"])
        raise SpecError.of(
            key,
            value,
            f"{PREFIX} and one of {known}; methods: {', '.join(METHOD_CONFIGS)}",
        )
    if head in GROUPS:
        values[head] = dict(values.get(head) or {})
        node = values[head]
    else:
        node = methods.setdefault(head, {"method": head})
    for step in path[1:-1]:
        below = node.get(step)
        if below is not None and not isinstance(below, Mapping):
            raise SpecError.of(key, shorten(value), f"a field below {step}")
        node[step] = dict(below or {})
        node = node[step]
    node[path[-1]] = value
