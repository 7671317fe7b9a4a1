"""The gate: when a thinking step is latent. Settings only, without torch; ``rule.py`` computes it.

One primitive serves methods that contradict one another: SwiReasoning, LEAD and SeLaR are latent
where the model is uncertain, ThinkRouter where it is confident.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from tokenlens.spec.base import MAX_ENTRIES, StrictModel

MAX_ANCHORS = 3
"""The most tokens that a blend may mix in."""

MAX_EXEMPT = 256
"""The most exempt tokens."""

Token = (
    Annotated[str, Field(min_length=1, max_length=64)]
    | Annotated[int, Field(ge=0, lt=1 << 24, description="token id")]
)
Exempt = Literal["none", "math"] | Annotated[tuple[Token, ...], Field(max_length=MAX_EXEMPT)]
Anchors = (
    Literal["think_start", "think_end"]
    | Annotated[tuple[Token, ...], Field(min_length=1, max_length=MAX_ANCHORS)]
)


class Gate(StrictModel):
    """A signal, a comparison, hysteresis, dwell windows, a cap on switches, exempt tokens.

    While latent, a request goes discrete when the signal falls beyond ``leave``; while discrete, it
    goes latent when the signal rises to ``enter``. ``latent_when: low`` turns both around. With
    ``trend`` the signal must also be strictly beyond what it was at the last switch.
    """

    signal: Literal["entropy", "max_probability"] = Field(
        "entropy", description="what is compared with the bounds"
    )
    of: Literal["raw", "tempered", "filtered", "topk"] = Field(
        "tempered",
        description="raw: temperature 1; tempered: the method's temperature, before every filter;"
        " filtered: after the filters; topk: the first `top` of these, renormalised",
    )
    unit: Literal["nats", "fraction"] = Field(
        "nats", description="fraction: divided by the logarithm of the support's size"
    )
    top: int = Field(3, ge=2, le=MAX_ENTRIES, description="entries, where of is topk")
    latent_when: Literal["high", "low"] = Field(
        "high", description="whether a high or a low signal makes a step latent"
    )
    enter: float | None = Field(None, ge=0, le=100, description="bound for going latent")
    leave: float | None = Field(
        None, ge=0, le=100, description="bound for going discrete; null = enter"
    )
    enter_at_bound: bool = Field(True, description="a signal equal to `enter` goes latent")
    trend: bool = Field(False, description="compare with the signal at the last switch as well")
    first: Literal["signal", "latent"] = Field(
        "signal", description="latent: the first step is, and sets what trend compares with"
    )
    dwell_latent: int = Field(0, ge=0, le=10_000_000, description="steps before going discrete")
    dwell_discrete: int = Field(0, ge=0, le=10_000_000, description="steps before going latent")
    max_switches: int | None = Field(
        None, ge=1, le=1_000_000, description="from latent to discrete; then discrete for good"
    )
    exempt: Exempt = Field(
        "none", description="tokens that are always fed as themselves; math: digits, operators, ..."
    )

    @field_validator("exempt", mode="before")
    @classmethod
    def _accept_lists(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    @model_validator(mode="after")
    def _consistent(self) -> "Gate":
        if self.enter is None and not self.trend:
            raise _problem("no enter and no trend", "a bound (enter), or trend = true, or both")
        if self.enter is not None and self.leave is not None:
            low, high = sorted((self.enter, self.leave))
            wanted = (high, low) if self.latent_when == "high" else (low, high)
            if (self.enter, self.leave) != wanted:
                side = "at most" if self.latent_when == "high" else "at least"
                raise _problem(
                    f"leave = {self.leave} with enter = {self.enter}",
                    f"a leave of {side} enter, or the gate would flutter",
                )
        if self.unit == "fraction" and self.signal != "entropy":
            raise _problem(f"unit = fraction with signal = {self.signal}", "unit = nats beside it")
        return self


def _problem(got: str, allowed: str) -> PydanticCustomError:
    return PydanticCustomError(
        "inconsistent", "got {got}; allowed: {allowed}", {"got": got, "allowed": allowed}
    )


class Blend(StrictModel):
    """A mixture moved to anchor tokens: ``keep * mixture + (1 - keep) * mean of E[tokens]``."""

    tokens: Anchors = Field(..., description="one token each; a marker's last token")
    keep: float = Field(..., ge=0, le=1, description="of the mixture, at the first token")
    moves: bool = Field(False, description="keep rises to 1 over the method's budget")

    @field_validator("tokens", mode="before")
    @classmethod
    def _accept_lists(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value


class SwitchControl(StrictModel):
    """Injections that make a request converge, counted in switches from latent to discrete."""

    after: int = Field(2, ge=1, le=1_000_000, description="M: from M to 2M each one converges")
    converge: str | None = Field(
        None, min_length=1, max_length=256, description="null = the end marker"
    )
    terminate: str = Field(
        "</think>\n\nThe final answer is", min_length=1, max_length=256, description="beyond 2M"
    )
    answer_tokens: int = Field(
        32, ge=1, le=1_000_000, description="that a terminated request may still give"
    )
    temperature: float = Field(
        0.0, ge=0, le=100, description="the engine's, for an end beneath an injected token"
    )
