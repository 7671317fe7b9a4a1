"""What Soft Thinking can be asked for (arXiv 2505.15778)."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from tokenlens.spec.base import MAX_ENTRIES, MethodBase, StrictModel


class ColdStop(StrictModel):
    """End thinking after ``patience`` steps in a row whose entropy is below the threshold."""

    entropy_threshold: float = Field(
        0.1, ge=1e-9, le=20, description="strictly below this counts; in the unit of entropy_unit"
    )
    patience: int = Field(256, ge=1, le=1_000_000, description="steps in a row")
    entropy_unit: Literal["nats", "fraction"] = Field(
        "nats", description="fraction: divided by the logarithm of the vocabulary's size"
    )


class ConceptTokens(MethodBase):
    """The settings of Soft Thinking and of the methods that are built on it."""

    published: ClassVar[Mapping[str, Any]] = {
        "start": "first_token",
        "forced_end": "last_token",
        "greedy_answer": True,
        "abort_answer_on_low_entropy": True,
    }

    temperature: float = Field(
        0.6, ge=0, le=100, description="of the concept weights; 0 = the arg-max alone"
    )
    top_k: int = Field(30, ge=0, le=MAX_ENTRIES, description="0 = off")
    top_p: float = Field(
        0.95,
        gt=0,
        le=1,
        description="nucleus: the most probable tokens that together reach this probability",
    )
    min_p: float = Field(0.0, ge=0, lt=1, description="relative to the largest probability")
    max_entries: int = Field(15, ge=1, le=MAX_ENTRIES, description="entries of a concept token")
    cold_stop: ColdStop | None = Field(None, description="null = off")
    start: Literal["thinking", "first_token"] = Field(
        "thinking", description="first_token: latent from the first token, whatever the prompt says"
    )
    forced_end: Literal["marker", "last_token", "first_token"] = Field(
        "marker", description="last_token, first_token: this one of the end marker's ends thinking"
    )
    eos_while_latent: Literal["stop", "forbid"] = Field(
        "stop", description="stop: an end-of-text on top ends the request, as in the paper's code"
    )
    greedy_answer: bool = Field(
        False,
        description="answer tokens are the concept token's top entry, not the engine's sample",
    )
    abort_answer_on_low_entropy: bool = Field(
        False, description="Cold Stop's counter also ends the answer"
    )


class SoftThinking(ConceptTokens):
    """Feed a probability-weighted mixture of token embeddings while the model thinks."""

    method: Literal["soft_thinking"] = "soft_thinking"
