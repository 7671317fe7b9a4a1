"""What SeLaR can be asked for (arXiv 2604.08299)."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from tokenlens.methods._shared.filters import Entries, MinP, TopK, TopP
from tokenlens.methods._shared.gate.fields import Gate
from tokenlens.spec.base import LEAST, QUIRKS, MethodBase, StrictModel


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
    top_k: TopK = 20
    top_p: TopP = 0.95
    min_p: MinP = 0.0
    max_entries: Entries = 3
    push: float = Field(
        1.0, ge=0, le=100, description="lambda: away from the top token, times the entropy"
    )
    quirks: SelarQuirks | None = QUIRKS

    @property
    def from_first_token(self) -> bool:
        """Thinks from the first token on, whatever the prompt says."""
        return bool(self.rules.start == "first_token")


CONFIG = Selar
