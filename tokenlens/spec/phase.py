"""How a request's phases are found: the markers around thinking, or none at all."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from tokenlens.spec.base import StrictModel
from tokenlens.spec.families import FAMILIES

MAX_MARKER_TOKENS = 8
"""The longest think marker, in tokens."""

MAX_MARKERS = 4
"""Wordings of a start, of an end, and of what begins a tool call."""

THINK_START, THINK_END = "<think>", "</think>"
"""The markers of most families."""

MARKERS_DIFFER = "two markers: a text that begins thinking cannot end it"

AUTO, NONE = "auto", "none"

TokenId = Annotated[int, Field(ge=0, lt=1 << 24)]
Text = Annotated[str, Field(min_length=1, max_length=64)]
Ids = Annotated[tuple[TokenId, ...], Field(min_length=1, max_length=MAX_MARKER_TOKENS)]
Marker = Text | Ids
Several = Annotated[tuple[Text | Ids, ...], Field(min_length=1, max_length=MAX_MARKERS)]

FoundBy = Literal[
    "spec", "engine", "response_template", "chat_template", "vocabulary", "family", "none"
]
"""Where markers came from: the spec, the engine's reasoning parser, the tokenizer's response
template, its chat template, its added tokens, the table of families, or that there are none."""


def markers_in(value: Marker | Several | None) -> tuple[Marker, ...]:
    """The markers of a field that holds one or several."""
    if value is None:
        return ()
    if isinstance(value, str) or (value and isinstance(value[0], int)):
        return (value,)
    return tuple(value)  # type: ignore[arg-type]


MARKERS = (
    f"a text of at most 64 characters, 1 to {MAX_MARKER_TOKENS} token ids below {1 << 24:,}, or a"
    f" list of up to {MAX_MARKERS} of these"
)


def _is_marker(item: Any) -> bool:
    if isinstance(item, str):
        return 0 < len(item) <= 64
    if not isinstance(item, tuple) or not 0 < len(item) <= MAX_MARKER_TOKENS:
        return False
    return all(type(token) is int and 0 <= token < 1 << 24 for token in item)


class PhaseConfig(StrictModel):
    """How a request's phases are found: the markers around thinking, as text or as token ids.

    A text stands for the whole: ``auto`` (the default: markers are found from the model), ``none``
    (a model without any: thinking from the first token), or the name of a family.

    Attributes
    ----------
    markers
        What stands for the markers that are not given.
    think_start, think_end
        One marker or several wordings of it. Of several ends the first is the one that is forced.
        A marker that is given may take several tokens. With ``none`` there is no start, and an end
        is a text that ends the thinking where the model writes it; nobody forces it.
    tool_start
        What begins a tool call inside of thinking, and ends the thinking by that.
    opens
        ``first_token``: a text begins inside of the thinking, as of models that write an end only.
    end_after
        With ``none``: thinking is over after so many tokens, and nothing is written for it.
    counted
        Whether a budget or a schedule counts over all thinking of a request (``whole``), or begins
        anew with every block (``block``).
    reopens
        Whether thinking may be opened again once it has ended. Where not, all that follows the
        first end is answer, in which nothing is forced: so is a request whose answer is held to a
        grammar.
    found
        How the markers were found; a trace's spec says it.
    """

    markers: str = Field(AUTO, description="auto, none, or the name of a family")
    think_start: Marker | Several | None = Field(
        None, description="opens thinking; null = found from the model"
    )
    think_end: Marker | Several | None = Field(
        None, description="ends thinking; null = found from the model"
    )
    tool_start: Marker | Several | None = Field(
        None, description="a tool call inside of thinking; null = found from the model"
    )
    opens: Literal["marker", "first_token"] = Field(
        "marker", description="what opens thinking; first_token: models with an end only"
    )
    end_after: int | None = Field(
        None, ge=0, lt=1 << 31, description="tokens of thinking where there are no markers"
    )
    counted: Literal["whole", "block"] = Field(
        "whole", description="what budgets count: all thinking, or each block of it"
    )
    reopens: bool = Field(True, description="whether thinking may be opened again after its end")
    found: FoundBy | None = Field(None, description="how the markers were found; a trace says it")

    @model_validator(mode="before")
    @classmethod
    def _accept_names(cls, value: Any) -> Any:
        if value is None:
            return {}
        if isinstance(value, str):
            value = {"markers": value}
        if isinstance(value, Mapping) and value.get("markers") == NONE:
            return {"opens": "first_token", **value}
        return value

    @field_validator("markers", mode="after")
    @classmethod
    def _known(cls, value: str) -> str:
        if value in (AUTO, NONE) or value in FAMILIES:
            return value
        allowed = f"{AUTO}, {NONE}, or a family: {', '.join(FAMILIES)}"
        raise PydanticCustomError("not_allowed", "{allowed}", {"allowed": allowed})

    @field_validator("think_start", "think_end", "tool_start", mode="before")
    @classmethod
    def _accept_lists(cls, value: Any) -> Any:
        # JSON and YAML have no tuples, and the models are strict.
        if not isinstance(value, (list, tuple)):
            return value
        items = tuple(tuple(item) if isinstance(item, list) else item for item in value)
        if not any(isinstance(item, (str, tuple)) for item in items):
            return items  # token ids; what is wrong with one is said of it
        if len(items) <= MAX_MARKERS and all(map(_is_marker, items)):
            return items[0] if len(items) == 1 else items
        raise PydanticCustomError("not_allowed", "{allowed}", {"allowed": MARKERS})

    @model_validator(mode="after")
    def _markers_differ(self) -> "PhaseConfig":
        none = self.markers == NONE
        if none and (self.think_start is not None or self.opens != "first_token"):
            got = f"markers = none with think_start = {self.think_start!r}, opens = {self.opens!r}"
            raise _problem(got, "no think_start and opens = first_token: nothing opens thinking")
        if self.end_after is not None and not none:
            got = f"end_after = {self.end_after} with markers = {self.markers!r}"
            allowed = "markers = none beside it; with markers say {method: answer_now, after: ...}"
            raise _problem(got, allowed)
        if none:
            return self
        own = self.markers not in (AUTO, NONE) and FAMILIES[self.markers]
        start, end = self.think_start, self.think_end
        starts = markers_in(start) or (own.starts if own else (THINK_START,))
        ends = markers_in(end) or (own.ends if own else (THINK_END,))
        if self.opens == "first_token" and start is None:
            starts = ()
        for one in starts:
            for other in ends:
                if one == other or _differ_in_blanks(one, other):
                    got = f"{one!r} as think_start and as think_end"
                    raise _problem(got, MARKERS_DIFFER)
        return self


def _differ_in_blanks(start: Any, end: Any) -> bool:
    """Whether two texts are the same but for blanks around them."""
    texts = isinstance(start, str) and isinstance(end, str)
    return texts and bool(start.strip()) and start.strip() == end.strip()


def _problem(got: str, allowed: str) -> PydanticCustomError:
    return PydanticCustomError(
        "inconsistent", "got {got}; allowed: {allowed}", {"got": got, "allowed": allowed}
    )
