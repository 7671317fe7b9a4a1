"""What refusals of engines are, and which requests are fed mixtures. Knows no engine."""

from tokenlens.serving.settings import Settings
from tokenlens.spec import DecodingSpec
from tokenlens.spec.registry import LATENT_METHODS


class UnsupportedError(ValueError):
    """A setting of the engine that cannot host specs. Says why and what to do."""


def allows_latent(settings: Settings) -> bool:
    """Whether any request may be fed mixtures."""
    return settings.allow is None or bool(LATENT_METHODS.intersection(settings.allow))


def is_latent(spec: DecodingSpec) -> bool:
    """Whether a request may be fed mixtures."""
    return any(config.method in LATENT_METHODS for config in spec.methods)
