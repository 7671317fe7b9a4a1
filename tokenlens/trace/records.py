"""The records of a trace, the same from every engine."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from pydantic import Field, model_validator

from tokenlens.spec import DecodingSpec
from tokenlens.spec.base import StrictModel

SCHEMA_VERSION = 4
"""Raised when a field comes, changes its meaning, or goes. 2: ``prompt_ids``. 3: ``counts``'
``switches`` is ``gate_switches``, beside ``mode_changes`` and ``others``;
``never_opened``; the phase's ``markers``, ``found`` and more. 4: ``tripped``."""

MAX_PROMPT_IDS = 1 << 16
"""Tokens of a prompt that a trace has beside its steps; of a longer one it has none."""

PhaseName = Literal["prompt", "thinking", "answer"]
PHASE_NAMES: tuple[PhaseName, ...] = ("prompt", "thinking", "answer")
"""In the order of the core's phase numbers."""


def kept_prompt(ids: Sequence[int], level: str) -> tuple[int, ...]:
    """A prompt's tokens as a trace of this level keeps them."""
    if level != "full" or len(ids) > MAX_PROMPT_IDS:
        return ()
    return tuple(int(token) for token in ids)


class TraceStep(StrictModel):
    """One committed token, and how it came about."""

    position: int = Field(description="index of the token in its sequence, prompt included")
    phase: PhaseName = Field(description="the phase that the token was decided in")
    token: int = Field(description="the visible token")
    latent: bool = Field(description="fed as a mixture, not as the token's own embedding")
    forced: bool = Field(description="decided by tokenlens, not by the engine's sampler")
    valid: bool = Field(description="false where the logits held a NaN or nothing finite")
    entropy: float = Field(description="nats, full vocabulary; at the method's temperature or at 1")
    max_probability: float = Field(description="of the same distribution")
    entries: tuple[tuple[int, float], ...] = Field(
        description="concept token: ids and weights, largest first, anchors last"
    )
    log_probability: float = Field(0.0, description="of the step's noise, for trainers")
    scores: tuple[float, ...] = Field((), description="of the entries, for trainers")
    # What only some methods have to say. An engine that records it fills it in; None otherwise.
    edits: dict[str, float] | None = Field(
        None,
        description="by method: the bias in logits of its words (-1e10 bans them), the"
        " temperature, or the number of tokens that a truncation keeps",
    )
    switch: Literal["to_latent", "to_discrete"] | None = Field(
        None, description="the method's gate changed its mode at this step"
    )


class TraceCounts(StrictModel):
    """Totals of a request."""

    tokens: int
    thinking_tokens: int
    latent_steps: int
    forced_steps: int
    invalid_steps: int
    cold_stops: int = 0
    shifted_steps: int = Field(
        0, description="a vector was added behind a decoder layer where the token was read"
    )
    gate_switches: int = Field(0, description="of a gate, from latent to discrete")
    mode_changes: int = Field(
        0, description="steps that are latent where the one before was not, or the other way"
    )
    others: dict[str, int] = Field(
        default_factory=dict, description="what methods count that are not of this library, by name"
    )

    @model_validator(mode="before")
    @classmethod
    def _read_old_name(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and "switches" in data and "gate_switches" not in data:
            return {"gate_switches" if k == "switches" else k: v for k, v in data.items()}
        return data

    @property
    def switches(self) -> int:
        """The old name of ``gate_switches``, for one release."""
        text = "TraceCounts.switches is gate_switches now; mode_changes counts every change"
        warnings.warn(text, DeprecationWarning, stacklevel=2)
        return self.gate_switches


TripCondition = Literal["entropy", "max_probability", "margin", "rank"]
TRIP_CONDITIONS: tuple[TripCondition, ...] = get_args(TripCondition)
"""In the order of their numbers in a report."""


class Tripped(StrictModel):
    """Where a tripwire ended a request, and why."""

    position: int = Field(description="index of the token that was not written, prompt included")
    condition: TripCondition = Field(description="the first that was met")
    value: float = Field(
        description="nats; the largest probability; how far it is above the second; the rank"
    )


def never_opened(spec: DecodingSpec, counts: TraceCounts, final_phase: PhaseName) -> bool:
    """Whether a spec that acts in thinking met none, in a request that wrote anything."""
    acts = any(
        config.is_latent or config.is_budget or config.method == "answer_now"
        for config in spec.methods
        # Which wants no thinking at all
        if config.method != "no_thinking"
    )
    return acts and counts.tokens > 0 and counts.thinking_tokens == 0 and final_phase != "thinking"


NEVER_OPENED = (
    "thinking never opened in a request with {methods}: it was decoded as if nothing had been asked"
    " for. The markers were {markers} (found by: {found}). Turn the model's thinking on in its chat"
    " template, name its own markers as phase.think_start and phase.think_end, or say phase: none"
    " to think from the first token"
)


def warning_of(spec: DecodingSpec) -> str:
    """What to tell whoever asked for something that did not happen."""
    phase = spec.phase
    markers = f"{phase.think_start!r} and {phase.think_end!r}"
    return NEVER_OPENED.format(
        methods=", ".join(config.method for config in spec.methods),
        markers=markers,
        found=phase.found or "the spec",
    )


class Trace(StrictModel):
    """A request's trace: totals always, steps where the spec asked for them."""

    schema_version: int = SCHEMA_VERSION
    engine: str
    spec: DecodingSpec = Field(description="with the seed that was used, if anything was drawn")
    sample: int = Field(
        0,
        ge=0,
        description="which of the samples that share the seed their spec gave (n above 1); 0 also"
        " for those that each have a seed of their own, which then repeats them",
    )
    same_noise: bool = Field(
        False,
        description="another live request had the same prompt and the same seed: the same noise",
    )
    prompt_ids: tuple[int, ...] = Field(
        (),
        max_length=MAX_PROMPT_IDS,
        description="the prompt's tokens, for a replay; only beside steps, and only where they are"
        " known and not too many",
    )
    final_phase: PhaseName
    counts: TraceCounts
    steps: tuple[TraceStep, ...] = ()
    dropped_steps: int = Field(0, description="steps beyond trace.max_steps")
    never_opened: bool = Field(
        False,
        description="a latent method or a budget was asked for, and nothing of it happened: the"
        " thinking never opened",
    )
    tripped: Tripped | None = Field(
        None, description="the token at which the method ``tripwire`` ended the request"
    )
