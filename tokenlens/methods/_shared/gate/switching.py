"""Fields of LEAD and SwiReasoning: blocks of latent thinking, blends at their borders. No torch."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from tokenlens.methods._shared.gate.fields import MAX_ANCHORS, Blend, Gate, SwitchControl
from tokenlens.spec.base import LEAST, MAX_ENTRIES, QUIRKS, MethodBase, Needs, StrictModel
from tokenlens.spec.needs import Need

DENSE_WAY_OUT = f"mixture = top_k, the {MAX_ENTRIES - MAX_ANCHORS} most probable tokens"


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


PUBLISHED: Mapping[str, Any] = {
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
