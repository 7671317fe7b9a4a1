"""How noise on the weights of concept tokens goes with other methods. No torch."""

from typing import ClassVar

from tokenlens.spec.base import DrawingMethod, Excludes, Requires


class ConceptNoise(DrawingMethod):
    """Noise on the weights of concept tokens."""

    family: ClassVar[tuple[str, ...]] = ("noise",)
    requires: ClassVar[tuple[Requires, ...]] = (Requires("latent", "it changes concept weights"),)
    excludes: ClassVar[tuple[Excludes, ...]] = (
        Excludes(
            "latent",
            "the noise is on a concept token's entries",
            field="mixture",
            value="full",
            instead="mixture = top_k beside it",
        ),
    )
