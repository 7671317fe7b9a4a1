"""What refusals of engines are, and which requests are fed mixtures. Knows no engine."""

from tokenlens.errors import UnsupportedError
from tokenlens.serving.settings import Settings
from tokenlens.spec import DecodingSpec
from tokenlens.spec.registry import LATENT_METHODS

__all__ = ["UnsupportedError", "allows_latent", "is_latent"]


def allows_latent(settings: Settings) -> bool:
    """Whether any request may be fed mixtures."""
    return settings.allow is None or bool(LATENT_METHODS.intersection(settings.allow))


def is_latent(spec: DecodingSpec) -> bool:
    """Whether a request may be fed mixtures."""
    return any(config.method in LATENT_METHODS for config in spec.methods)
