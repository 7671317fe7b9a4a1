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

import json
from collections.abc import Mapping
from typing import Any

from tokenlens.errors import SpecError
from tokenlens.spec import METHOD_CONFIGS, DecodingSpec, PhaseConfig, parse_spec
from tokenlens.spec.bounded import Bounded
from tokenlens.spec.errors import shorten
from tokenlens.spec.installed import how_to_allow
from tokenlens.spec.load import check_size
from tokenlens.spec.seeds import find_seed, is_open, with_seed

KEY = "tokenlens"
PREFIX = "tokenlens_"
SAMPLE_KEY = "_tokenlens_sample"
"""Set by our front end for the second and later samples of one prompt (``n > 1``)."""

SEED_KEY = "_tokenlens_seed"
"""Set by our front end for a request whose spec leaves its seed open."""

FOUND_KEY = "_tokenlens_found"
"""Set by our front end: the sets of tokens that it found in the vocabulary, by field."""

PHASE_KEY = "_tokenlens_phase"
"""Set by our front end: the request's phase with the markers that it found."""

MARKERS_KEY = "_tokenlens_markers"
"""Set by our front end for a request with markers of several tokens: which, and how many different
ones the worker has room for."""

FLAT = ("preset", "seed", "phase")
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
    # Before anything is made of it: a body may hold megabytes.
    for given in (arguments.get(KEY), _flat(arguments)):
        if isinstance(given, Mapping):
            check_size(given)
    key = _key_of(arguments)
    spec = None if key is None else _PARSED.get(key)
    if spec is None:
        spec = _spec_of(arguments)
        if key is not None:
            _PARSED.put(key, spec, 4096 + 16 * len(key))
    return spec


_PARSED: Bounded[DecodingSpec] = Bounded(256, 8 << 20)
"""Specs that clients wrote, none that was refused. One costs some ten times its text."""


def _key_of(arguments: Mapping[str, Any]) -> str | None:
    """What a client wrote as one text, ``None`` where it holds more than JSON has."""
    whole = arguments.get(KEY)
    flat = _flat(arguments)
    if isinstance(whole, str) and not flat:
        return whole
    try:
        return json.dumps([whole, flat], sort_keys=True)
    except (TypeError, ValueError, RecursionError):
        return None


def _flat(arguments: Mapping[str, Any]) -> dict[str, Any]:
    # Where arguments come from Python they may have keys of any kind.
    return {k: v for k, v in arguments.items() if isinstance(k, str) and k.startswith(PREFIX)}


def _spec_of(arguments: Mapping[str, Any]) -> DecodingSpec:
    whole = arguments.get(KEY)
    flat = _flat(arguments)
    if not flat:
        return _parse(whole)
    if whole is not None and PREFIX + "preset" in flat:
        raise SpecError.of(
            PREFIX + "preset", flat[PREFIX + "preset"], f"nothing beside {KEY}, or no {KEY}"
        )
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


def refuse_internal(arguments: Mapping[str, Any]) -> None:
    """Refuse arguments that only our front end may set.

    Raises
    ------
    SpecError
    """
    for key in (SAMPLE_KEY, SEED_KEY, FOUND_KEY, PHASE_KEY, MARKERS_KEY):
        if key in arguments:
            raise SpecError.of(key, arguments[key], "nothing: it is ours")


def seeded(
    arguments: Mapping[str, Any], spec: DecodingSpec, engine_seed: int | None
) -> dict[str, Any]:
    """A request's extra arguments with the seed of its noise, where its spec leaves that open.

    Parameters
    ----------
    engine_seed
        The seed that the engine has for this request, ``None`` if it has none.
    """
    return {**arguments, SEED_KEY: find_seed(engine_seed)} if is_open(spec) else dict(arguments)


def sample_of(arguments: Mapping[str, Any] | None) -> tuple[DecodingSpec, int] | None:
    """The spec with the seed of its noise, and which of the samples that share it this is.

    Where the front end found the seed, each sample's spec has its own, and the index is 0.

    Raises
    ------
    SpecError
        The seed is open, and no front end of ours has found one.
    """
    spec = spec_of(arguments)
    if spec is None or arguments is None:
        return None
    phase = arguments.get(PHASE_KEY)
    if phase is not None:
        spec = spec.model_copy(update={"phase": PhaseConfig.model_validate_json(phase)})
    index = int(arguments.get(SAMPLE_KEY, 0))
    if not is_open(spec):
        return spec, index
    seed = arguments.get(SEED_KEY)
    if not isinstance(seed, int):
        raise SpecError.of("seed", seed, "a seed in the spec, because no front end has found one")
    return with_seed(spec, seed, index), 0


def _parse(whole: Any) -> DecodingSpec:
    if isinstance(whole, str):
        return parse_spec(whole)
    if isinstance(whole, (Mapping, DecodingSpec)):
        return parse_spec(whole)
    raise SpecError.of(KEY, whole, "the name of a preset, a spec as JSON text, or a mapping")


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
        # `phase.FIELD` may stand beside `phase`, and comes after it.
        values[head] = {"markers": value} if head == "phase" else value
        return
    if len(path) < 2 or len(path) > MAX_PATH or not (head in GROUPS or head in METHOD_CONFIGS):
        known = ", ".join([*FLAT, *(f"{group}.FIELD" for group in GROUPS), "METHOD.FIELD"])
        raise SpecError.of(
            key,
            value,
            f"{PREFIX} and one of {known}; methods: {', '.join(METHOD_CONFIGS)}",
            "" if head in METHOD_CONFIGS else how_to_allow(head),
        )
    if head in GROUPS:
        values[head] = dict(values.get(head) or {})
        node = values[head]
    else:
        node = methods.setdefault(head, {"method": head})
        # As the spec itself does, and so that it changes what a preset has set there.
        path = METHOD_CONFIGS[head].new_place(path)
    for step in path[1:-1]:
        below = node.get(step)
        if below is not None and not isinstance(below, Mapping):
            raise SpecError.of(key, value, f"a field below {shorten(step)}")
        node[step] = dict(below or {})
        node = node[step]
    node[path[-1]] = value
