"""Methods that feed the model's last hidden state back: Coconut and LatentMAS.

Coconut: arXiv 2412.06769. LatentMAS: arXiv 2511.20639.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from tokenlens.spec.base import QUIRKS, Excludes, MethodBase, Needs, StrictModel
from tokenlens.spec.gate import Token
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

    def needs(self) -> Needs:
        return {Need.HIDDEN_STATE: ("method", self.method, WAY_OUT)}


class Coconut(HiddenFeedback):
    """The last hidden state itself is the next input."""

    method: Literal["coconut"] = "coconut"


class LatentMasQuirks(StrictModel):
    """What LatentMAS's code does unless it is told otherwise."""

    realign: bool = Field(
        True, description="through the alignment matrix; false: rescaled only (the code's default)"
    )
    precision: Literal["float64", "float32"] = Field(
        "float64",
        description="of the alignment matrix's sums and solution; float32: the code's, which is far"
        " from the solution where the vocabulary is hardly larger than the width",
    )


class LatentMas(HiddenFeedback):
    """The last hidden state, mapped to the input space and rescaled to an embedding's norm."""

    published: ClassVar[Mapping[str, Any]] = {"quirks": {"realign": False, "precision": "float32"}}

    method: Literal["latent_mas"] = "latent_mas"
    steps: int = Field(10, ge=1, le=100_000, description="latent steps, from the first thought on")
    quirks: LatentMasQuirks | None = QUIRKS
