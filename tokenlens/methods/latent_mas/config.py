"""What LatentMAS can be asked for (arXiv 2511.20639)."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from tokenlens.methods._shared.hidden_feedback.fields import HiddenFeedback
from tokenlens.spec.base import QUIRKS, StrictModel


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

    def needs_whole_table(self) -> tuple[str, Any, str] | None:
        """Sums in float32 are others on every number of ranks, and so is what they solve."""
        if self.rules.precision == "float64":
            return None
        return "quirks.precision", self.rules.precision, "float64"


CONFIG = LatentMas
