"""The lines of a trace file, and what a file holds once it is read.

A file is JSON Lines. A trace is a header, its steps in order, and an end; traces of one batch may
be interleaved, so every line names its trace. The text of a token is written once, before the first
step that mentions it. Knows no tokenizer and no engine.
"""

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from tokenlens.spec import DecodingSpec
from tokenlens.spec.base import StrictModel
from tokenlens.trace.records import (
    MAX_PROMPT_IDS,
    SCHEMA_VERSION,
    PhaseName,
    Trace,
    TraceCounts,
    TraceStep,
    Tripped,
)

MAX_LINE_BYTES = 1 << 20
"""No line of ours comes near it; one that does is not a trace."""

KIND: Literal["tokenlens.trace"] = "tokenlens.trace"
"""``kind`` of a header: what tells a trace file from other JSON Lines."""

TraceNumber = Annotated[int, Field(ge=0, lt=1 << 20)]


class Header(StrictModel):
    """Opens a trace."""

    kind: Literal["tokenlens.trace"] = KIND
    schema_version: int = SCHEMA_VERSION
    trace: TraceNumber
    engine: str
    spec: DecodingSpec
    sample: int = 0
    model: str = ""
    prompt: str = ""
    prompt_ids: tuple[int, ...] = Field((), max_length=MAX_PROMPT_IDS)


class TokenTexts(StrictModel):
    """Texts of tokens that later steps mention."""

    kind: Literal["texts"] = "texts"
    texts: dict[int, str]


class StepLine(TraceStep):
    """A step of a trace."""

    kind: Literal["step"] = "step"
    trace: TraceNumber
    text: str | None = Field(None, description="what the step adds, where not its token's text")


class End(StrictModel):
    """Closes a trace. A trace without it was cut off."""

    kind: Literal["end"] = "end"
    trace: TraceNumber
    final_phase: PhaseName
    counts: TraceCounts
    dropped_steps: int = 0
    same_noise: bool = False
    tripped: Tripped | None = None
    tail: str | None = Field(None, description="what the last step adds beside its own text")


Line = Annotated[Header | TokenTexts | StepLine | End, Field(discriminator="kind")]
LINE: TypeAdapter[Header | TokenTexts | StepLine | End] = TypeAdapter(Line)


class Recording(StrictModel):
    """A trace with what a person needs to read it.

    Parameters
    ----------
    trace
        The trace. Where it was cut off, its counts are those of the steps that are there.
    model, prompt
        As the writer was told.
    texts
        Text of each token that a step mentions; may be empty. Parts of characters stand as bytes.
    pieces
        By a step's index, the text that the step adds, where that is not its token's: a character
        of several tokens stands at the last of them.
    complete
        Whether the trace's end was there.
    """

    trace: Trace
    model: str = ""
    prompt: str = ""
    texts: dict[int, str] = Field({})
    pieces: dict[int, str] = Field({})
    complete: bool = True

    def text(self, token: int) -> str:
        """A token's text, or its id where the text is not known."""
        return self.texts.get(token, f"⟨{token}⟩")

    def step_text(self, index: int) -> str:
        """The text that a step adds; all of them together are the text."""
        found = self.pieces.get(index)
        return self.text(self.trace.steps[index].token) if found is None else found


def token_ids(step: TraceStep) -> list[int]:
    """Every token that a step mentions."""
    return [step.token, *(token for token, _ in step.entries)]
