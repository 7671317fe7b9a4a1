"""What Budget Guidance can be asked for (arXiv 2506.13752)."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from tokenlens.methods._shared.named_file import FileName
from tokenlens.methods._shared.words import MAX_TOKENS
from tokenlens.spec.base import QUIRKS, MethodBase, Needs, StrictModel
from tokenlens.spec.needs import Need


class BudgetGuidanceQuirks(StrictModel):
    """What the code of Budget Guidance does, and its paper does not say."""

    sure_only: bool = Field(
        False,
        description="a token counts only where its predictor is sure: rate at least 10, shape above"
        " 1, mode at least 0.9 tokens",
    )


class BudgetGuidance(MethodBase):
    """Weighs tokens at line ends by the probability that thinking then ends within a budget.

    The code samples these steps without temperature and filters; here the engine's come behind.
    """

    family: ClassVar[tuple[str, ...]] = ("guidance",)
    published: ClassVar[Mapping[str, Any]] = {"quirks": {"sure_only": True}}

    method: Literal["budget_guidance"] = "budget_guidance"
    file: FileName = "budget_guidance"
    budget: int = Field(1000, ge=1, le=MAX_TOKENS, description="thinking tokens")
    quirks: BudgetGuidanceQuirks | None = QUIRKS

    def needs(self) -> Needs:
        way_out = "thinking_budget, which needs the tokens alone"
        return {Need.LAYER_STATES: ("method", self.method, way_out)}


CONFIG = BudgetGuidance
