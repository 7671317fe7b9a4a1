"""Fields of methods that feed the model's last hidden state back. No torch."""

from typing import ClassVar

from pydantic import Field

from tokenlens.methods._shared.gate.fields import Token
from tokenlens.spec.base import Excludes, MethodBase, Needs
from tokenlens.spec.needs import Need

WAY_OUT = "soft_thinking, which feeds mixtures of embeddings"


class HiddenFeedback(MethodBase):
    """A fixed number of latent steps at the beginning of thinking."""

    family: ClassVar[tuple[str, ...]] = ("latent",)
    excludes: ClassVar[tuple[Excludes, ...]] = (
        Excludes("noise", "a hidden state has no concept weights for it to change"),
    )

    method: str
    steps: int = Field(6, ge=1, le=100_000, description="latent steps, from the first thought on")
    placeholder: Token | None = Field(
        None,
        description="visible token of a latent step; null = the arg-max, which may end thinking",
    )

    @property
    def vector_steps(self) -> int:
        """As many as it has."""
        return self.steps

    def needs(self) -> Needs:
        return {Need.HIDDEN_STATE: ("method", self.method, WAY_OUT)}
