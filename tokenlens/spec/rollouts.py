"""Methods whose noise is meant for training with reinforcement: a step has a log-probability.

SofT-GRPO (arXiv 2511.06411), Latent-SFT and Latent-GRPO (arXiv 2510.15522, 2604.27998), CoT2
(arXiv 2505.23648), Soft Tokens, Hard Truths (arXiv 2509.19170).
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from tokenlens.spec.base import (
    LEAST,
    MAX_ENTRIES,
    MAX_NOISE,
    QUIRKS,
    DrawingMethod,
    Excludes,
    MethodBase,
    Needs,
    StrictModel,
)
from tokenlens.spec.needs import Need
from tokenlens.spec.noise import ConceptNoise
from tokenlens.spec.soft_thinking import ConceptQuirks, ConceptTokens, SoftThinking

MAX_DRAWS = 16
"""The most tokens that CoT2 may average."""


class SoftGrpoQuirks(StrictModel):
    """What SofT-GRPO's code does, and its paper does not say."""

    log_probability_of: Literal["noise", "draw"] = Field(
        "noise", description="draw: of the draw before it is scaled, which no trainer sees"
    )


class SoftGrpoNoise(ConceptNoise):
    """Clamped Gumbel noise on the concept weights, recorded so that a trainer can score it."""

    published: ClassVar[Mapping[str, Any]] = {"quirks": {"log_probability_of": "draw"}}

    method: Literal["soft_grpo_noise"] = "soft_grpo_noise"
    temperature: float = Field(0.1, ge=LEAST, le=100, description="tau; small = nearly one-hot")
    scale: float = Field(1.0, ge=LEAST, le=MAX_NOISE, description="of the noise")
    clamp_low: float = Field(-1.5, ge=-100, le=0, description="noise below it is raised to it")
    clamp_high: float = Field(3.0, ge=0, le=100, description="noise above it is lowered to it")
    quirks: SoftGrpoQuirks | None = QUIRKS


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
    top_p: float = Field(0.95, gt=0, le=1, description="of the candidates that noise may lift")
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


class Cot2(DrawingMethod):
    """The mean of several tokens drawn from the whole vocabulary, with replacement."""

    family: ClassVar[tuple[str, ...]] = ("latent",)
    excludes: ClassVar[tuple[Excludes, ...]] = (
        Excludes("noise", "cot2 has no concept weights for it to change"),
    )

    method: Literal["cot2"] = "cot2"
    draws: int = Field(3, ge=1, le=MAX_DRAWS, description="K")
    scale_logits: bool = Field(True, description="draw from softmax(logits / K)")

    def entries(self) -> tuple[str, int]:
        """A mean of drawn tokens has an entry for each draw."""
        return "draws", self.draws


class SoftTokens(ConceptTokens):
    """A mixture at low temperature, with Gaussian noise on its embedding."""

    published: ClassVar[Mapping[str, Any]] = {"mixture": "full"}

    method: Literal["soft_tokens"] = "soft_tokens"
    temperature: float = Field(
        0.5, ge=LEAST, le=100, description="0.0001: the paper's fuzzy tokens"
    )
    top_k: int = Field(0, ge=0, le=MAX_ENTRIES, description="0 = off")
    top_p: float = Field(
        1.0,
        gt=0,
        le=1,
        description="nucleus: the most probable tokens that together reach this probability",
    )
    max_entries: int = Field(
        MAX_ENTRIES, ge=1, le=MAX_ENTRIES, description="entries of a concept token"
    )
    mixture: Literal["top_k", "full"] = Field(
        "top_k", description="full: the whole vocabulary, where the engine can"
    )
    noise_scale: float = Field(
        0.33, ge=0, le=100, description="gamma, times the RMS of the embedding; 0 = no noise"
    )
    rms: Literal["coordinate", "row"] = Field(
        "coordinate", description="row: of the rows' norms, larger by the root of the width"
    )

    @property
    def uses_seed(self) -> bool:
        """Draws: what it does depends on the request's seed."""
        return self.noise_scale > 0

    def needs(self) -> Needs:
        found: dict[Need, tuple[str, Any, str]] = {}
        if self.mixture == "full":
            way_out = "mixture = top_k, the 64 most probable"
            found[Need.DENSE_MIXTURE] = ("mixture", self.mixture, way_out)
        if self.noise_scale > 0:
            found[Need.EMBEDDING_NOISE] = (
                "noise_scale", self.noise_scale, "0, and gumbel_noise for noise on the weights"
            )  # fmt: skip
        return found
