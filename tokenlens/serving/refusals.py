"""What refusals of engines are, and which requests are fed mixtures. Knows no engine."""

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from pydantic import ValidationError

from tokenlens.errors import SpecError, UnsupportedError
from tokenlens.serving.settings import Settings, vector_bytes
from tokenlens.spec import METHOD_CONFIGS, DecodingSpec
from tokenlens.spec.base import MethodBase
from tokenlens.spec.needs import Need, needs_of

if TYPE_CHECKING:
    from tokenlens.core import Request

ANY_MODEL = "TOKENLENS_ANY_MODEL"
"""Set to 1 to go on with a multimodal class that no test has seen."""

__all__ = [
    "ANY_MODEL",
    "UnsupportedError",
    "allows_latent",
    "allows_layer_states",
    "allows_prompt_states",
    "allows_shifts",
    "allows_vectors",
    "check_vectors",
    "is_latent",
    "is_own",
    "untested_class",
    "vectors_of",
]


def allows_latent(settings: Settings) -> bool:
    """Whether any request may be fed mixtures."""
    return settings.allow is None or any(
        METHOD_CONFIGS[name].family.count("latent") for name in settings.allow
    )


def allows_vectors(settings: Settings) -> bool:
    """Whether any request may be fed more than concept tokens."""
    return settings.allow is None or any(
        METHOD_CONFIGS[name].needs is not MethodBase.needs for name in settings.allow
    )


def allows_shifts(settings: Settings) -> bool:
    """Whether any request may be shifted behind a decoder layer."""
    return _may_need(Need.LAYER_SHIFT, settings)


def allows_prompt_states(settings: Settings) -> bool:
    """Whether any request may read the last hidden state behind its prompt."""
    return _may_need(Need.PROMPT_STATE, settings)


def allows_layer_states(settings: Settings) -> bool:
    """Whether any request may read what decoder layers leave."""
    return _may_need(Need.LAYER_STATES, settings)


def _may_need(need: Need, settings: Settings) -> bool:
    """Whether the operator allows a file, and a method that needs something to use one."""
    allowed = settings.allow
    return bool(settings.files) and (
        allowed is None or any(need in _needs_of(name) for name in allowed)
    )


def _needs_of(name: str) -> Iterable[Need]:
    config = METHOD_CONFIGS[name]
    if config.needs is MethodBase.needs:
        return ()
    try:
        return config.model_validate({"method": name}).needs()
    except ValidationError:
        # A field of it must be given, and what it needs may depend on that.
        return tuple(Need)


def is_own(spec: DecodingSpec) -> bool:
    """Whether what stands in the KV cache behind a request's prompt does not follow from its ids.

    Then it is nobody else's, and has to be made again as it was made.
    """
    return is_latent(spec) or Need.LAYER_SHIFT in needs_of(spec)


def is_latent(spec: DecodingSpec) -> bool:
    """Whether a request may be fed mixtures."""
    return spec.latent is not None


def vectors_of(request: "Request", most_tokens: int) -> int:
    """Vectors of the engine's that a request may be fed, of at most so many tokens."""
    if not request.needs & Need.ENGINE_VECTOR:
        return 0
    config = request.spec.latent
    steps = None if config is None or Need.BLOCKS in request.needs else config.vector_steps
    return most_tokens if steps is None else min(steps, most_tokens)


def check_vectors(
    request: "Request", most_tokens: int, settings: Settings, hidden_size: int, ranks: int
) -> None:
    """Refuse a request whose vectors this engine cannot keep, or not make on several ranks.

    Parameters
    ----------
    most_tokens
        The most tokens that the request can be given.
    ranks
        Shards of the embedding table.

    Raises
    ------
    SpecError
        Names the field, the bound and the way out.
    """
    config = request.spec.latent
    if config is None:
        return
    whole = config.needs_whole_table()
    if whole is not None and ranks > 1:
        field, value, way_out = whole
        raise SpecError.of(
            f"{config.method}.{field}",
            value,
            f"{way_out} on {ranks} tensor-parallel ranks, each of which has a part of the table",
        )
    wanted, kept = vectors_of(request, most_tokens), settings.vectors(hidden_size)
    if wanted > kept:
        field, value, way_out = next(iter(config.needs().values()))
        raise SpecError.of(
            f"{config.method}.{field}",
            value,
            f"{way_out}; or a request that is fed at most {kept} vectors of"
            f" {vector_bytes(hidden_size)} bytes, which is what this server keeps (vectors_mib:"
            f" {settings.vectors_mib}), where this one may be fed {wanted}: one for each latent"
            " step up to its most tokens. Ask for fewer",
        )


def untested_class(architectures: Iterable[str], seen: frozenset[str]) -> str | None:
    """Why a multimodal model is refused for latent methods, ``None`` if it is not.

    Mixtures stand at generated positions alone, and those of images are the engine's; how a class
    embeds the two is its own affair, so that one is allowed once a test has seen it.

    Parameters
    ----------
    architectures
        Of the model, as its configuration names them.
    seen
        Classes that the engine's tests have seen.
    """
    names = [str(name) for name in architectures]
    if seen.intersection(names) or os.environ.get(ANY_MODEL) == "1":
        return None
    tested = f"one that was tested ({', '.join(sorted(seen))})" if seen else "one of texts alone"
    return (
        f"model: got the multimodal class {', '.join(names) or 'of an unknown name'}; allowed:"
        f" {tested}, because latent methods were not tested with others. Set {ANY_MODEL}=1 to go on"
        " with it, and hold its traces to `tokenlens trace verify`."
    )
