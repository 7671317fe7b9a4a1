"""What SeLaR can be asked for (arXiv 2604.08299)."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from tokenlens.methods._shared.gate.fields import Gate
from tokenlens.spec.base import LEAST, MAX_ENTRIES, QUIRKS, MethodBase, StrictModel


class SelarQuirks(StrictModel):
    """What SeLaR's code does, and its paper does not say."""

    start: Literal["thinking", "first_token"] = Field(
        "thinking", description="first_token: latent from the first token, whatever the prompt says"
    )
    goes_on_in_answer: bool = Field(False, description="the answer has latent steps too")


class Selar(MethodBase):
    """Latent where the top three disagree, pushed away from the top token."""

    published: ClassVar[Mapping[str, Any]] = {
        "quirks": {"start": "first_token", "goes_on_in_answer": True}
    }
    family: ClassVar[tuple[str, ...]] = ("latent", "gate")

    method: Literal["selar"] = "selar"
    gate: Gate = Field(
        Gate(of="topk", unit="fraction", enter=0.5, exempt="math"),
        description="latent where the top tokens disagree",
    )
    temperature: float = Field(0.6, ge=LEAST, le=100, description="of the concept weights")
    top_k: int = Field(20, ge=0, le=MAX_ENTRIES, description="0 = off")
    top_p: float = Field(
        0.95,
        gt=0,
        le=1,
        description="nucleus: the most probable tokens that together reach this probability",
    )
    min_p: float = Field(0.0, ge=0, lt=1, description="relative to the largest probability")
    max_entries: int = Field(3, ge=1, le=MAX_ENTRIES, description="entries of a concept token")
    push: float = Field(
        1.0, ge=0, le=100, description="lambda: away from the top token, times the entropy"
    )
    quirks: SelarQuirks | None = QUIRKS

    @property
    def from_first_token(self) -> bool:
        """Thinks from the first token on, whatever the prompt says."""
        return bool(self.rules.start == "first_token")


CONFIG = Selar
