"""How long a request thinks: budgets, S1's budget forcing, AlphaOne's schedule."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from tokenlens.spec.base import LEAST, QUIRKS, DrawingMethod, MethodBase
from tokenlens.spec.schedules import MAX_TOKENS, CountedMethod, WordQuirks, Words, as_tuple

StepEnds = Annotated[
    tuple[Annotated[str, Field(min_length=1, max_length=16)], ...],
    BeforeValidator(as_tuple),
    Field(min_length=1, max_length=16),
]
ALPHA_ONE_STEP_ENDS = (
    "\n\n", ",\n\n", ".\n\n", "]\n\n", ")\n\n", "],\n\n", "].\n\n", ").\n\n", ".)\n\n",
)  # fmt: skip


class ThinkingBudget(CountedMethod):
    """End thinking after so many tokens, at once or at the next step, with a ramp before it."""

    family: ClassVar[tuple[str, ...]] = ("budget",)

    method: Literal["thinking_budget"] = "thinking_budget"
    budget: int = Field(..., ge=0, le=MAX_TOKENS, description="thinking tokens")
    count_prompt: bool = Field(
        True, description="thinking that the prompt already holds is counted too"
    )
    stop: Literal["hard", "step"] = Field(
        "hard", description="step: after the next token that ends a step"
    )
    grace: int = Field(
        128, ge=1, le=MAX_TOKENS, description="tokens that stop=step waits for the end of a step"
    )
    step_end: str = Field(
        "\n\n", min_length=1, max_length=16, description="ends a step's last token"
    )
    ramp: float = Field(0.0, ge=0, le=1, description="share of the budget, its last part")
    ramp_strength: float = Field(
        10.0, ge=0, le=100, description="logits that the end marker has gained at the budget"
    )
    text: str | None = Field(
        None, min_length=1, max_length=256, description="forced text; null = the end marker"
    )


class S1(MethodBase):
    """Budget forcing (arXiv 2501.19393): thinking that ends early goes on, late thinking ends."""

    method: Literal["s1"] = "s1"
    ignore_end: int = Field(1, ge=0, le=1000, description="ends of thinking that are replaced")
    text: str = Field("Wait", min_length=1, max_length=256, description="what replaces them")
    max_thinking: int | None = Field(
        None, ge=0, le=MAX_TOKENS, description="thinking tokens; null = no end is forced"
    )
    answer_prefix: str | None = Field(
        None, min_length=1, max_length=256, description="written after an end that was forced"
    )
    temperature: float = Field(
        0.0, ge=0, le=100, description="the engine's; an end is replaced as often as it is drawn"
    )

    @property
    def is_budget(self) -> bool:
        """Ends thinking after a number of tokens."""
        return self.max_thinking is not None

    @property
    def uses_seed(self) -> bool:
        """Draws: what it does depends on the request's seed."""
        return self.temperature > 0

    @model_validator(mode="after")
    def _prefix_needs_an_end(self) -> "S1":
        if self.answer_prefix is not None and self.max_thinking is None:
            raise PydanticCustomError(
                "not_allowed",
                "allowed: {allowed}",
                {"allowed": "an answer_prefix only beside max_thinking"},
            )
        return self


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
