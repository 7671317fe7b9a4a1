"""What Soft Thinking can be asked for (arXiv 2505.15778)."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from tokenlens.methods._shared.filters import Entries, MinP, TopK, TopP
from tokenlens.spec.base import QUIRKS, MethodBase, Recipe, StrictModel


class ColdStop(StrictModel):
    """End thinking after ``patience`` steps in a row whose entropy is below the threshold."""

    entropy_threshold: float = Field(
        0.1, ge=1e-9, le=20, description="strictly below this counts; in the unit of entropy_unit"
    )
    patience: int = Field(256, ge=1, le=1_000_000, description="steps in a row")
    entropy_unit: Literal["nats", "fraction"] = Field(
        "nats", description="fraction: divided by the logarithm of the vocabulary's size"
    )


class ConceptQuirks(StrictModel):
    """What the code of Soft Thinking does, and its paper does not say."""

    start: Literal["thinking", "first_token"] = Field(
        "thinking", description="first_token: latent from the first token, whatever the prompt says"
    )
    forced_end: Literal["marker", "last_token", "first_token"] = Field(
        "marker", description="last_token, first_token: this one of the end marker's ends thinking"
    )
    greedy_answer: bool = Field(
        False,
        description="answer tokens are the concept token's top entry, not the engine's sample",
    )
    abort_answer_on_low_entropy: bool = Field(
        False, description="Cold Stop's counter also ends the answer"
    )


class ConceptTokens(MethodBase):
    """The settings of Soft Thinking and of the methods that are built on it."""

    published: ClassVar[Mapping[str, Any]] = {
        "quirks": {
            "start": "first_token",
            "forced_end": "last_token",
            "greedy_answer": True,
            "abort_answer_on_low_entropy": True,
        }
    }
    family: ClassVar[tuple[str, ...]] = ("latent",)

    temperature: float = Field(
        0.6, ge=0, le=100, description="of the concept weights; 0 = the arg-max alone"
    )
    top_k: TopK = 30
    top_p: TopP = 0.95
    min_p: MinP = 0.0
    max_entries: Entries = 15
    cold_stop: ColdStop | None = Field(None, description="null = off")
    eos_while_latent: Literal["stop", "forbid"] = Field(
        "stop", description="stop: an end-of-text on top ends the request, as in the paper's code"
    )
    quirks: ConceptQuirks | None = QUIRKS

    @property
    def from_first_token(self) -> bool:
        """Thinks from the first token on, whatever the prompt says."""
        return bool(self.rules.start == "first_token")

    @property
    def forced_end_part(self) -> Literal["marker", "last_token", "first_token"]:
        """What of the end marker ends thinking."""
        return (self.quirks or ConceptQuirks()).forced_end


COLD_STOP: Mapping[str, Any] = {"entropy_threshold": 0.01, "patience": 256}
"""The setting that the README of Soft Thinking gives for QwQ-32B."""


class SoftThinking(ConceptTokens):
    """Feed a probability-weighted mixture of token embeddings while the model thinks."""

    recipes: ClassVar[Mapping[str, Recipe]] = {
        "soft": Recipe(
            "Soft Thinking with Cold Stop, as the paper means it",
            ({"method": "soft_thinking", "cold_stop": COLD_STOP},),
        ),
        "soft-published": Recipe(
            "Soft Thinking as the authors' code does it for QwQ-32B",
            (
                {
                    "method": "soft_thinking",
                    "profile": "published",
                    "min_p": 0.001,
                    "max_entries": 10,
                    "cold_stop": COLD_STOP,
                },
            ),
        ),
    }

    method: Literal["soft_thinking"] = "soft_thinking"


CONFIG = SoftThinking
