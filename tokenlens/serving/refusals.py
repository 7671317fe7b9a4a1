"""What refusals of engines are, and which requests are fed mixtures. Knows no engine."""

import os
from collections.abc import Iterable

from tokenlens.errors import UnsupportedError
from tokenlens.serving.settings import Settings
from tokenlens.spec import METHOD_CONFIGS, DecodingSpec

ANY_MODEL = "TOKENLENS_ANY_MODEL"
"""Set to 1 to go on with a multimodal class that no test has seen."""

__all__ = ["ANY_MODEL", "UnsupportedError", "allows_latent", "is_latent", "untested_class"]


def allows_latent(settings: Settings) -> bool:
    """Whether any request may be fed mixtures."""
    return settings.allow is None or any(
        METHOD_CONFIGS[name].family.count("latent") for name in settings.allow
    )


def is_latent(spec: DecodingSpec) -> bool:
    """Whether a request may be fed mixtures."""
    return spec.latent is not None


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
