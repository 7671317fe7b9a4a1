"""What every controller's request has: budgets, markers, bounds, how answers are read.

Knows no method: the configs of those are in ``methods/``, all of them together in ``spec.py``.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from tokenlens.routing.settings import Marker, Sampling
from tokenlens.spec.base import MethodBase, StrictModel


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


Text = Annotated[str, Field(min_length=1, max_length=64)]
Texts = Annotated[tuple[Text, ...], Field(min_length=1, max_length=64), BeforeValidator(_as_tuple)]
MaybeTexts = Annotated[tuple[Text, ...], Field(max_length=64), BeforeValidator(_as_tuple)]
Probability = Annotated[float, Field(ge=0, le=1)]


class Limits(StrictModel):
    """What one request may cost beside its text. A config that wants more is refused."""

    forks: int = Field(512, ge=0, le=1_000_000, description="lines and trials")
    probes: int = Field(512, ge=0, le=1_000_000, description="probes and calls of a second model")
    injected_tokens: int = Field(4096, ge=0, le=1_000_000, description="written by no model")


class Needed(StrictModel):
    """The most that a config can use of each bound, where its fields decide it."""

    forks: int = 0
    probes: int = 0


class PolicyBase(MethodBase):
    """A method's config.

    Attributes
    ----------
    needs_ids
        Why a server that takes and gives text cannot carry it out; ``None`` where it can.
    needs_second
        Why a second model is needed; ``None`` where none is.
    needs_shared
        Why both models must have one vocabulary; ``None`` where they need not.
    """

    needs_ids: ClassVar[str | None] = None
    needs_second: ClassVar[str | None] = None
    needs_shared: ClassVar[str | None] = None
    # whether it reads distributions after temperature and filters
    reads_warped: ClassVar[bool] = False
    # whether calls end before a token whose distribution meets a condition
    trips: ClassVar[bool] = False

    def needed(self) -> Needed:
        """The most that it can use, as far as that is known before a request."""
        return Needed()

    def second(self) -> str | None:
        """Why a second model is needed, if it is."""
        return self.needs_second

    def scorers(self) -> tuple[str, ...]:
        """Functions that the caller has to give."""
        return ()

    def texts(self) -> dict[str, str]:
        """Texts by field that are put into what the model reads: its tokenizer must write them."""
        return {}


class Frame(StrictModel):
    """A request's budgets, markers and bounds, whatever the method.

    Parameters
    ----------
    thinking_tokens, answer_tokens
        Budgets of one line of text. Thinking that reaches its own is closed with ``closing``.
    closing
        What closes the thinking by force.
    read_answer
        Where an answer is: in the last ``\\boxed{}``, behind "answer is", the text behind the
        thinking, or the first of these that there is (``auto``).
    equality
        When two answers are the same: as texts, as numbers, or as numbers where both are
        (``auto``); ``math`` asks math-verify.
    """

    thinking_tokens: int = Field(8192, ge=0, le=1_000_000)
    answer_tokens: int = Field(2048, ge=1, le=1_000_000)
    think_start: Marker = "<think>"
    think_end: Marker | None = Field("</think>", description="null: a model that does not think")
    closing: str | None = Field(
        None, max_length=200, description="null: a new line, the end marker, an empty line"
    )
    read_answer: Literal["auto", "boxed", "phrase", "text"] = "auto"
    equality: Literal["auto", "text", "number", "math"] = "auto"
    limits: Limits = Limits()
    trace_nodes: int = Field(4096, ge=0, le=100_000, description="nodes kept in the trace")

    @property
    def closing_text(self) -> str:
        """What closes the thinking by force."""
        if self.closing is not None:
            return self.closing
        return f"\n{self.think_end}\n\n" if self.think_end else ""


GREEDY = Sampling()
