"""What a thinking budget can be asked for."""

from typing import ClassVar, Literal

from pydantic import Field

from tokenlens.methods._shared.words import MAX_TOKENS, CountedMethod


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


CONFIG = ThinkingBudget
