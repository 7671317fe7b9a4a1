"""Latent methods that decide step by step when to think in mixtures: rows of settings on the gate.

ThinkRouter (arXiv 2602.11683), SwiReasoning (arXiv 2510.05069), LEAD (arXiv 2603.13366), SeLaR
(arXiv 2604.08299).
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from tokenlens.spec.base import LEAST, MAX_ENTRIES, QUIRKS, MethodBase, Needs, StrictModel
from tokenlens.spec.gate import MAX_ANCHORS, Blend, Gate, SwitchControl
from tokenlens.spec.needs import Need
from tokenlens.spec.soft_thinking import ConceptTokens

DENSE_WAY_OUT = "mixture = top_k, the 64 most probable tokens"


class ThinkRouter(ConceptTokens):
    """Soft Thinking, but for steps at which the model is not sure of its top token.

    They are sampled by the engine. Where the probability is taken is ``gate.of``; the paper does
    not say, and the default is after temperature and before every filter.
    """

    family: ClassVar[tuple[str, ...]] = ("latent", "gate")

    method: Literal["think_router"] = "think_router"
    gate: Gate = Field(
        Gate(signal="max_probability", enter=0.6), description="latent where the model is sure"
    )


class SwitchingQuirks(StrictModel):
    """What the code of LEAD and of SwiReasoning does, and their papers do not say."""

    start: Literal["thinking", "first_token"] = Field(
        "thinking", description="first_token: latent from the first token, whatever the prompt says"
    )
    goes_on_in_answer: bool = Field(
        False, description="the gate and the blend at leaving go on after the end of thinking"
    )
    injected_end_locks: bool = Field(
        True, description="an injected end of thinking ends latent thinking for good"
    )
    injected_as_token: bool = Field(
        True, description="an injected token is fed as itself; false: as the gate says"
    )
    restarts: bool = Field(
        False, description="a switch inside an injected text replaces it; false: waits for its end"
    )
    hidden_end_locks: bool = Field(
        False, description="the model's own end beneath an injected token ends latent thinking"
    )
    rearms: bool = Field(False, description="termination may be injected more than once")


class Switching(MethodBase):
    """What LEAD and SwiReasoning share: blocks of latent thinking, anchors at their borders."""

    family: ClassVar[tuple[str, ...]] = ("latent", "gate")

    method: str
    gate: Gate = Field(..., description="when a step is latent")
    temperature: float = Field(1.0, ge=LEAST, le=100, description="of signal and mixture")
    mixture: Literal["top_k", "full"] = Field(
        "top_k", description="full: the whole vocabulary, where the engine can"
    )
    max_entries: int = Field(
        MAX_ENTRIES - MAX_ANCHORS, ge=1, le=MAX_ENTRIES - MAX_ANCHORS, description="where top_k"
    )
    first: Blend | None = Field(None, description="at the first latent step")
    enter: Blend | None = Field(None, description="at the switch to latent")
    leave: Blend | None = Field(
        None, description="at the switch to discrete: fed instead of the token; null = the token"
    )
    budget: int = Field(32_768, ge=1, le=10_000_000, description="tokens over which blends move")
    switch_control: SwitchControl | None = Field(
        None, description="injections that end a thought which switches often; null = off"
    )
    quirks: SwitchingQuirks | None = QUIRKS

    @property
    def from_first_token(self) -> bool:
        """Thinks from the first token on, whatever the prompt says."""
        return bool(self.rules.start == "first_token")

    @property
    def uses_seed(self) -> bool:
        """Draws: what it does depends on the request's seed."""
        return self.switch_control is not None and self.switch_control.temperature > 0

    def entries(self) -> tuple[str, int]:
        """The anchors of a blend are the last entries of the widest concept token."""
        blends = any((self.first, self.enter, self.leave))
        return "max_entries", MAX_ENTRIES if blends else self.max_entries

    def needs(self) -> Needs:
        if self.mixture != "full":
            return {}
        return {Need.DENSE_MIXTURE: ("mixture", self.mixture, DENSE_WAY_OUT)}


_TREND = Gate(of="raw", trend=True, first="latent", dwell_discrete=512, exempt="math")
_PUBLISHED = {
    "mixture": "full",
    "quirks": {
        "start": "first_token",
        "goes_on_in_answer": True,
        "injected_end_locks": False,
        "injected_as_token": False,
        "restarts": True,
        "hidden_end_locks": True,
        "rearms": True,
    },
}


class SwiReasoning(Switching):
    """Blocks of latent and of discrete thinking, switched by the trend of the entropy."""

    # The code looks the two characters backslash and n up, not a line break.
    published: ClassVar[Mapping[str, Any]] = {
        **_PUBLISHED,
        "first": Blend(tokens=("\\n",), keep=0.9),
    }

    method: Literal["swi_reasoning"] = "swi_reasoning"
    gate: Gate = Field(_TREND, description="when a step is latent")
    first: Blend | None = Field(
        Blend(tokens=("\n",), keep=0.9), description="at the first latent step"
    )
    enter: Blend | None = Field(
        Blend(tokens="think_start", keep=1.0, moves=True), description="at the switch to latent"
    )
    leave: Blend | None = Field(
        Blend(tokens="think_end", keep=0.7, moves=True),
        description="at the switch to discrete: fed instead of the token; null = the token",
    )


class Lead(Switching):
    """Latent where the entropy is high, with an anchor at each switch; multimodal by origin.

    The default is the paper's rule: the trend alone, and a fixed blend. It has no anchor at the
    switch to latent, because a text model has no vision tokens; ``VISION`` is the paper's.
    """

    VISION: ClassVar[Blend] = Blend(
        tokens=("<|vision_start|>", "<|image_pad|>", "<|vision_end|>"), keep=0.4
    )
    """The paper's anchor: the mean of the vision markers."""

    published: ClassVar[Mapping[str, Any]] = {
        **_PUBLISHED,
        "gate": Gate(
            of="raw", trend=True, enter=1.0, leave=0.2, enter_at_bound=False, first="latent",
            dwell_discrete=256, exempt="math",
        ),
        "first": Blend(tokens=("\n",), keep=0.9),
        "enter": Blend(tokens=("<|image_pad|>",), keep=0.6, moves=True),
        "leave": Blend(tokens="think_end", keep=0.7, moves=True),
        "switch_control": SwitchControl(after=5),
    }  # fmt: skip

    method: Literal["lead"] = "lead"
    gate: Gate = Field(
        Gate(of="raw", trend=True, first="latent", dwell_discrete=128, max_switches=5),
        description="when a step is latent",
    )


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
