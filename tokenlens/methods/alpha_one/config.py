"""What AlphaOne can be asked for (arXiv 2505.24863)."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from tokenlens.methods._shared.words import MAX_TOKENS, WordQuirks, Words, as_tuple
from tokenlens.spec.base import LEAST, QUIRKS, DrawingMethod

StepEnds = Annotated[
    tuple[Annotated[str, Field(min_length=1, max_length=16)], ...],
    BeforeValidator(as_tuple),
    Field(min_length=1, max_length=16),
]

ALPHA_ONE_STEP_ENDS = (
    "\n\n", ",\n\n", ".\n\n", "]\n\n", ")\n\n", "],\n\n", "].\n\n", ").\n\n", ".)\n\n",
)  # fmt: skip


class AlphaOneQuirks(WordQuirks):
    """What AlphaOne's code does, and its paper does not say."""

    step_match: Literal["end", "encoded"] = Field(
        "end", description="encoded: any token of the texts' own encodings ends a step"
    )


class AlphaOne(DrawingMethod):
    """Slow thinking that turns fast (arXiv 2505.24863): "Wait" ever more rarely, then never."""

    published: ClassVar[Mapping[str, Any]] = {
        "words": ("Wait",),
        "step_ends": ALPHA_ONE_STEP_ENDS,
        "quirks": {"forms": "bare", "counted": "output", "step_match": "encoded"},
    }

    method: Literal["alpha_one"] = "alpha_one"
    average_thinking: int = Field(
        ..., ge=1, le=MAX_TOKENS, description="tokens that this model thinks on average"
    )
    alpha: float = Field(1.4, ge=LEAST, le=100, description="slow for alpha times the average")
    text: str = Field("Wait", min_length=1, max_length=256, description="forced after a step")
    words: Words = Field(("wait",), description="drawn after the slow part, they end thinking")
    count_prompt: bool = Field(
        False, description="thinking that the prompt already holds is counted too"
    )
    step_ends: StepEnds = Field(("\n\n",), description="texts that end a step")
    temperature: float = Field(
        0.0, ge=0, le=100, description="the engine's; afterwards a word ends thinking when drawn"
    )
    quirks: AlphaOneQuirks | None = QUIRKS


CONFIG = AlphaOne
