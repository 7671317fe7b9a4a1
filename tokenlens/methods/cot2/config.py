"""What CoT2 can be asked for (arXiv 2505.23648)."""

from typing import ClassVar, Literal

from pydantic import Field

from tokenlens.spec.base import DrawingMethod, Excludes

MAX_DRAWS = 16
"""The most tokens that CoT2 may average."""


class Cot2(DrawingMethod):
    """The mean of several tokens drawn from the whole vocabulary, with replacement."""

    family: ClassVar[tuple[str, ...]] = ("latent",)
    excludes: ClassVar[tuple[Excludes, ...]] = (
        Excludes("noise", "cot2 has no concept weights for it to change"),
    )

    method: Literal["cot2"] = "cot2"
    draws: int = Field(3, ge=1, le=MAX_DRAWS, description="K")
    scale_logits: bool = Field(True, description="draw from softmax(logits / K)")

    def entries(self) -> tuple[str, int]:
        """A mean of drawn tokens has an entry for each draw."""
        return "draws", self.draws


CONFIG = Cot2
