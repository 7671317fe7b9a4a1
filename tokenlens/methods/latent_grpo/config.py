"""What Latent-SFT and Latent-GRPO can be asked for (arXiv 2510.15522, 2604.27998)."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from tokenlens.methods.soft_thinking.config import ConceptQuirks, SoftThinking
from tokenlens.spec.base import (
    LEAST,
    MAX_ENTRIES,
    MAX_NOISE,
    QUIRKS,
    SMALLEST,
    Excludes,
    MethodBase,
    StrictModel,
)


class LatentGrpoQuirks(StrictModel):
    """What Latent-GRPO's code does, and its paper does not say."""

    start: Literal["thinking", "first_token"] = Field(
        "thinking", description="first_token: latent from the first token, whatever the prompt says"
    )
    forced_end: Literal["marker", "last_token", "first_token"] = Field(
        "marker", description="first_token: the end marker's first token ends thinking"
    )
    greedy_answer: bool = Field(False, description="answer tokens are the top entry")


class LatentGrpo(MethodBase):
    """Top entries of the raw logits, for models trained by Latent-SFT or Latent-GRPO."""

    published: ClassVar[Mapping[str, Any]] = {
        "quirks": {"greedy_answer": True, "forced_end": "first_token"}
    }
    family: ClassVar[tuple[str, ...]] = ("latent",)
    excludes: ClassVar[tuple[Excludes, ...]] = (
        Excludes("noise", "latent_grpo has a noise of its own, in its field noise"),
    )

    method: Literal["latent_grpo"] = "latent_grpo"
    max_entries: int = Field(10, ge=1, le=MAX_ENTRIES, description="entries of a concept token")
    noise: Literal["none", "two_sided", "one_sided"] = Field(
        "none", description="one_sided: shifted to be positive; the same mixture, another score"
    )
    temperature: float = Field(1.0, ge=LEAST, le=100, description="tau of the noised weights")
    noise_scale: float = Field(
        1.0, ge=LEAST, le=MAX_NOISE, description="of the noise on the logits"
    )
    top_p: float = Field(
        0.95, ge=SMALLEST, le=1, description="of the candidates that noise may lift"
    )
    clamp_low: float = Field(-1.5, ge=-100, le=0, description="noise below it is raised to it")
    clamp_high: float = Field(3.0, ge=0, le=100, description="noise above it is lowered to it")
    quirks: LatentGrpoQuirks | None = QUIRKS

    @property
    def from_first_token(self) -> bool:
        """Thinks from the first token on, whatever the prompt says."""
        return bool(self.rules.start == "first_token")

    @property
    def forced_end_part(self) -> Literal["marker", "last_token", "first_token"]:
        """What of the end marker ends thinking."""
        return (self.quirks or LatentGrpoQuirks()).forced_end

    @property
    def uses_seed(self) -> bool:
        """Draws: what it does depends on the request's seed."""
        return self.noise != "none"

    def soft_thinking(self) -> SoftThinking:
        """The same decoding without the noise: a softmax over the first raw logits."""
        return SoftThinking(
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_entries=self.max_entries,
            quirks=ConceptQuirks.model_validate(self.rules.model_dump()),
        )


CONFIG = LatentGrpo
