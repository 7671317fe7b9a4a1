"""What a user may ask of a router: its policy, its budgets, its guards. Knows no backend."""

import math
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import (
    BeforeValidator,
    Field,
    PlainSerializer,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from tokenlens.errors import SpecError
from tokenlens.spec.base import ProfiledModel, StrictModel
from tokenlens.spec.errors import translated

Role = Literal["small", "large"]
ROLES: tuple[Role, ...] = ("small", "large")
ModelT = TypeVar("ModelT", bound=StrictModel)


def _infinity(value: Any) -> Any:
    # JSON has no infinity.
    return float(value) if value in ("inf", "-inf", "Infinity", "-Infinity") else value


Threshold = Annotated[
    float,
    Field(allow_inf_nan=True, description="nats for an entropy; inf and -inf are allowed"),
    BeforeValidator(_infinity),
    PlainSerializer(lambda value: str(value) if math.isinf(value) else value, when_used="json"),
]
Share = Annotated[float, Field(ge=0, le=1)]


def other(role: Role) -> Role:
    """The other of the two models."""
    return "large" if role == "small" else "small"


class GlimpRouter(ProfiledModel):
    """The entropy of a step's first token decides who writes it (arXiv 2601.05110, section 3).

    ============== ============================ =====================================
    field          default                      published (the authors' code)
    ============== ============================ =====================================
    entropy_of     full vocabulary where the    top 20, renormalised, equal texts
                   backend gives it (``auto``)  collapsed (``topk``)
    probe          kept if the small model      thrown away; the whole step is
                   writes the step              sampled anew
    probe_greedy   sampled as the request asks  arg-max
    comparison     ``>`` threshold              ``>=`` threshold
    an entropy     the large model              the small one (a NaN compares false)
    that is NaN
    ============== ============================ =====================================
    """

    published: ClassVar[Mapping[str, Any]] = {
        "entropy_of": "topk", "probe": "discard", "probe_greedy": True, "comparison": ">=",
        "on_nan": "small",
    }  # fmt: skip

    policy: Literal["glimprouter"] = "glimprouter"
    threshold: Threshold = Field(1.0, description="nats; the large model writes above it")
    target_share: Share | None = Field(
        None, description="instead of the threshold: the large model's share of the steps"
    )
    window: int = Field(1024, ge=1, le=1_000_000, description="entropies of the running quantile")
    signal: Literal["entropy", "max_probability", "concept_entropy"] = Field(
        "entropy",
        description="max_probability: 1 minus it; concept_entropy: of the concept token that Soft"
        " Thinking would make (temperature 0.6, top-k 30 or what there is, top-p 0.95)",
    )
    entropy_of: Literal["auto", "raw", "topk"] = Field(
        "auto", description="raw: full vocabulary; topk: the 20 largest, renormalised"
    )
    comparison: Literal[">", ">="] = ">"
    probe: Literal["keep", "discard"] = "keep"
    probe_greedy: bool = False
    on_nan: Role = "large"

    @field_validator("threshold", mode="after")
    @classmethod
    def _is_number(cls, value: float) -> float:
        if math.isnan(value):
            allowed = {"allowed": "a number, inf or -inf"}
            raise PydanticCustomError("not_allowed", "allowed: {allowed}", allowed)
        return value

    @property
    def only(self) -> Role | None:
        """The model that writes everything, if there is no choice."""
        if self.target_share is not None:
            return None
        if math.isinf(self.threshold):
            return "small" if self.threshold > 0 else "large"
        return None


class SpecReason(ProfiledModel):
    """The small model drafts each step, the large one scores it (arXiv 2504.07891).

    ``verbal`` asks the large model for a digit from 0 to 9, as the paper does; ``likelihood`` takes
    the geometric mean of its probabilities of the draft's tokens, times 9, for models that cannot
    be asked. ``published`` reads only the most likely token, as the code's ``greedy`` does.
    """

    published: ClassVar[Mapping[str, Any]] = {"reading": "greedy"}

    policy: Literal["specreason"] = "specreason"
    threshold: Threshold = Field(7.0, description="of 0 to 9; the draft is kept from here on")
    score: Literal["verbal", "likelihood"] = "verbal"
    reading: Literal["average", "greedy"] = "average"
    question: str = Field(
        "Evaluate the quality of the last reasoning step so far, from 0 (wrong or useless) to 9"
        " (correct and useful). Answer with one digit.",
        min_length=1,
        max_length=2000,
    )
    answer_prefix: str = Field("<think>I think the quality score is: ", max_length=500)

    @property
    def only(self) -> Role | None:
        """The model that writes everything, if there is no choice."""
        return "small" if self.threshold == -math.inf else None


NEGATIVE = ("wait", "alternatively", "hold on", "another")
POSITIVE = ("yeah", "yes", "final answer", "confident")
VERIFY = ("verify", "think again", "recap", "check")
Words = Annotated[
    tuple[Annotated[str, Field(min_length=1, max_length=64)], ...], Field(max_length=64)
]


class SpeculativeThinking(ProfiledModel):
    """Cues in what the small model is about to write call the large one (arXiv 2504.12329).

    After a step boundary the small model looks ahead; where its text holds a reflective or an
    affirmative cue, the large model writes ``large_tokens`` (``verify_tokens`` at a cue to verify),
    and the small one goes on. After ``recap_after`` negative cues the large model recapitulates.
    """

    policy: Literal["speculative_thinking"] = "speculative_thinking"
    look_ahead: int = Field(20, ge=1, le=512)
    large_tokens: int = Field(20, ge=1, le=4096)
    verify_tokens: int = Field(125, ge=1, le=4096)
    choose_large: bool = Field(
        True, description="false: the large model's text is kept only where the signs differ"
    )
    negative: Words = NEGATIVE
    positive: Words = POSITIVE
    verify: Words = VERIFY
    recap_after: int = Field(15, ge=0, le=10_000, description="negative cues; 0 = never")
    recap_text: str = Field(
        "Let me check whether there are some wrong steps:", min_length=1, max_length=500
    )
    recap_tokens: int = Field(125, ge=1, le=4096, description="25 more each time, at most 200")

    @field_validator("negative", "positive", "verify", mode="before")
    @classmethod
    def _accept_lists(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    @property
    def only(self) -> Role | None:
        """There is always a choice."""
        return None


class RandomShare(ProfiledModel):
    """Control: a share of the steps, chosen by the request's seed alone, is the large model's."""

    policy: Literal["random"] = "random"
    share: Share = 0.3

    @property
    def only(self) -> Role | None:
        """The model that writes everything, if there is no choice."""
        return {0.0: "small", 1.0: "large"}.get(self.share)  # type: ignore[return-value]


class AlwaysSmall(ProfiledModel):
    """Control: the small model alone."""

    policy: Literal["always_small"] = "always_small"
    only: ClassVar[Role] = "small"


class AlwaysLarge(ProfiledModel):
    """Control: the large model alone."""

    policy: Literal["always_large"] = "always_large"
    only: ClassVar[Role] = "large"


PolicyConfig = (
    GlimpRouter | SpecReason | SpeculativeThinking | RandomShare | AlwaysSmall | AlwaysLarge
)
POLICIES: dict[str, type[ProfiledModel]] = {
    "glimprouter": GlimpRouter, "specreason": SpecReason, "random": RandomShare,
    "speculative_thinking": SpeculativeThinking, "always_small": AlwaysSmall,
    "always_large": AlwaysLarge,
}  # fmt: skip
"""Config class by the name that goes into the field ``policy``."""

Marker = Annotated[str, Field(min_length=1, max_length=64)]


class RoutingSpec(StrictModel):
    """How two models write one text, step by step.

    Parameters
    ----------
    policy
        Who writes a step.
    step_tokens, thinking_tokens, answer_tokens, max_steps
        Budgets. A step that reaches its own goes on as the next step, without a delimiter; thinking
        that reaches its own is closed with ``closing``, and the answer follows.
    answer
        Who writes the answer; ``policy`` decides as for a step. By default the large model (section
        3 of GlimpRouter), or the only one that a policy uses.
    first_steps_large
        Steps at the beginning that are the large model's, without asking the policy.
    duplicate_guard
        Close thinking when a step equals the one before it, or the last four alternate.
    """

    policy: Annotated[PolicyConfig, Field(discriminator="policy")] = GlimpRouter()
    step_tokens: int = Field(512, ge=1, le=65_536)
    thinking_tokens: int = Field(8192, ge=0, le=1_000_000)
    answer_tokens: int = Field(2048, ge=1, le=1_000_000)
    max_steps: int = Field(4096, ge=1, le=100_000)
    answer: Literal["small", "large", "policy"] | None = None
    first_steps_large: int = Field(0, ge=0, le=100_000)
    duplicate_guard: bool = True
    delimiter: Marker = "\n\n"
    think_start: Marker = "<think>"
    think_end: Marker | None = Field("</think>", description="null: a model that does not think")
    closing: str | None = Field(
        None, max_length=200, description="null: a new line, the end marker, an empty line"
    )
    fallback: bool = Field(
        True, description="a step whose model does not answer is written by the other one"
    )
    trace_steps: int = Field(4096, ge=0, le=100_000, description="steps kept in the trace")

    @model_validator(mode="before")
    @classmethod
    def _name_of_policy(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and isinstance(data.get("policy"), str):
            return {**data, "policy": {"policy": data["policy"]}}
        return data

    @property
    def closing_text(self) -> str:
        """What closes the thinking by force."""
        if self.closing is not None:
            return self.closing
        return f"\n{self.think_end}\n\n" if self.think_end else ""

    @property
    def answer_by(self) -> Literal["small", "large", "policy"]:
        """Who writes the answer."""
        return self.answer or self.policy.only or "large"


class Sampling(StrictModel):
    """How tokens are sampled, by whichever model. Temperature 0 is greedy.

    ``None`` leaves it to the model: the default of its server, or of its generation config.
    """

    temperature: float | None = Field(0.0, ge=0, le=100)
    top_p: float | None = Field(1.0, gt=0, le=1)
    top_k: int | None = Field(0, ge=0, le=1_000_000, description="0 = off")
    seed: int = Field(0, ge=0, lt=1 << 63)


def parse_routing(data: "RoutingSpec | Mapping[str, Any] | str") -> RoutingSpec:
    """A routing spec from a mapping or a policy's name.

    Raises
    ------
    SpecError
        Names each wrong field, what was got, and what is allowed.
    """
    return parsed(RoutingSpec, "routing", POLICIES, data)


def parsed(
    model: type[ModelT], field: str, names: Iterable[str], data: ModelT | Mapping[str, Any] | str
) -> ModelT:
    """Settings whose field ``policy`` may stand for the whole; errors name ``field``.

    Parameters
    ----------
    names
        What ``policy`` may be, for the error.
    """
    if isinstance(data, model):
        return data
    if isinstance(data, str):
        data = {"policy": data}
    if not isinstance(data, Mapping):
        raise SpecError.of(field, data, "a mapping, or one of " + ", ".join(names))
    try:
        return model.model_validate(dict(data))
    except ValidationError as error:
        raise translated(model, error) from None
