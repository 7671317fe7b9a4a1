"""The part of OpenAI's API that a router serves: requests, and the shapes of its answers."""

import re
import secrets
import time
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from tokenlens.errors import RequestError
from tokenlens.routing import carried, fields
from tokenlens.routing.router import Routed
from tokenlens.routing.settings import Sampling
from tokenlens.spec.base import StrictModel

MAX_PROMPT_CHARACTERS = 4 << 20

MAX_MESSAGES = 4096
MAX_FIELDS = 16
"""Of a part whose null fields are passed over."""
MAX_PARTS = 1024
"""Text parts of one message."""


class StreamOptions(StrictModel):
    """What a stream ends with; the other options of others at the value that changes nothing."""

    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None
    continuous_usage_stats: Literal[False] | None = None


class Base(BaseModel):
    """What chat and completion requests share. Other fields: :mod:`tokenlens.routing.fields`."""

    model_config = ConfigDict(extra="ignore")

    model: str | None = None
    max_tokens: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=1_000_000)] | None = None
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    vllm_xargs: dict[str, Any] | None = None
    custom_params: dict[str, Any] | None = None
    route: bool = Field(False, description="put the route into the answer")
    controller: dict[str, Any] | str | None = Field(
        None, description="a controller's method for this request, by name or with its fields"
    )

    @model_validator(mode="after")
    def _one_limit(self) -> Self:
        both = (self.max_tokens, self.max_completion_tokens)
        if None not in both and both[0] != both[1]:
            raise ValueError("max_tokens and max_completion_tokens differ; give one of them")
        return self

    @property
    def limit(self) -> int | None:
        """Tokens that the answer may have."""
        return self.max_completion_tokens or self.max_tokens

    def arguments(self) -> dict[str, Any]:
        """A decoding spec for the servers, whichever field it is in.

        Raises
        ------
        SpecError
            It is none.
        """
        return carried.arguments(
            {"vllm_xargs": self.vllm_xargs, "custom_params": self.custom_params}
        )

    def sampling(self) -> Sampling:
        """As the loop takes it: what is left open stays open, but for the seed.

        Two models and many calls need one seed between them, so a request without one gets one.
        """
        return Sampling(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=None if self.top_k is None else max(0, self.top_k),
            seed=secrets.randbits(63) if self.seed is None else self.seed,
        )


class TextPart(StrictModel):
    """A part of a message's content."""

    type: Literal["text"]
    text: Annotated[str, Field(max_length=MAX_PROMPT_CHARACTERS)]

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: Any) -> Any:
        # What a client's library sends for a field that nobody set.
        if isinstance(value, dict) and len(value) <= MAX_FIELDS:
            return {name: one for name, one in value.items() if one is not None}
        return value


class Message(BaseModel):
    """One message; other fields go to the chat template if it reads them."""

    model_config = ConfigDict(extra="allow")

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: (
        Annotated[str, Field(max_length=MAX_PROMPT_CHARACTERS)]
        | Annotated[list[TextPart], Field(max_length=MAX_PARTS, fail_fast=True)]
        | None
    ) = None

    def plain(self) -> dict[str, Any]:
        """As a chat template reads it, whose contents are texts."""
        data = {"role": self.role, **(self.model_extra or {})}
        if self.content is not None:
            parts = self.content
            # As vLLM joins them.
            data["content"] = parts if isinstance(parts, str) else "\n".join(p.text for p in parts)
        return {name: value for name, value in data.items() if value is not None}


class ChatRequest(Base):
    """``/v1/chat/completions``."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
    chat_template_kwargs: dict[str, Any] = {}
    reasoning_effort: Annotated[str, Field(max_length=32)] | None = None


Ids = Annotated[
    list[Annotated[int, Field(ge=0, lt=1 << 31, strict=True)]],
    Field(min_length=1, max_length=1 << 21, fail_fast=True),
]


class CompletionRequest(Base):
    """``/v1/completions``."""

    prompt: Annotated[str, Field(min_length=1, max_length=MAX_PROMPT_CHARACTERS)] | Ids
    add_special_tokens: bool = Field(True, description="what the tokenizer puts before a text")

    @field_validator("prompt", mode="before")
    @classmethod
    def _one_of_a_list(cls, value: Any) -> Any:
        # A list of one prompt is one prompt.
        is_list = isinstance(value, list) and len(value) == 1 and isinstance(value[0], (str, list))
        return value[0] if is_list else value


AnyRequest = TypeVar("AnyRequest", bound=Base)


def parse(model: type[AnyRequest], body: Any) -> AnyRequest:
    """A request out of a JSON body.

    Raises
    ------
    RequestError
        Names each field that is wrong, or that cannot be carried out.
    """
    if not isinstance(body, dict):
        raise RequestError(f"the body: got {fields.shown(body, quote=True)}; allowed: an object")
    problems = fields.refused(body, model.model_fields, chat=model is ChatRequest)
    if problems:
        raise RequestError("\n".join(problems))
    try:
        # A field that is null was not set.
        return model.model_validate({n: v for n, v in body.items() if v is not None})
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False)
        lines = [_line(one) for one in found[: fields.MAX_PROBLEMS]]
        lines += ["and more"] if len(found) > len(lines) else []
        raise RequestError("\n".join(dict.fromkeys(lines))) from None


def _line(error: Any) -> str:
    # The names of a union's branches are no part of the field.
    path = [str(at) for at in error["loc"] if not BRANCH.match(str(at))]
    field = fields.shown(".".join(path) or "the body")
    got = "" if error["type"] == "missing" else f"got {fields.shown(error['input'], quote=True)}; "
    return f"{field}: {got}{error['msg']}"


BRANCH = re.compile(r"str$|constrained-str$|list\[|function-")


def usage(routed: Routed, prompt_tokens: int) -> dict[str, Any]:
    """OpenAI's usage, and each model's beside it."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": routed.tokens,
        "total_tokens": prompt_tokens + routed.tokens,
        "models": {role: one.model_dump() for role, one in routed.trace.usage.items()},
        **_beside(routed.trace),
    }


def _beside(trace: Any) -> dict[str, Any]:
    """What controllers count apart: tokens that no model wrote."""
    injected = getattr(trace, "injected_tokens", None)
    return {} if injected is None else {"injected_tokens": injected}


class Shape:
    """The objects of one answer."""

    def __init__(self, kind: Literal["chat", "text"], model: str) -> None:
        self._kind = kind
        prefix = "chatcmpl-" if kind == "chat" else "cmpl-"
        self._head = {"id": prefix + secrets.token_hex(12), "created": int(time.time())}
        self._model = model

    def whole(self, routed: Routed, prompt_tokens: int, route: bool) -> dict[str, Any]:
        """An answer in one piece."""
        choice: dict[str, Any] = {"index": 0, "finish_reason": routed.finish_reason}
        if self._kind == "chat":
            choice["message"] = {"role": "assistant", "content": routed.text}
        else:
            choice["text"] = routed.text
        name = "chat.completion" if self._kind == "chat" else "text_completion"
        answer = self._object(name, [choice])
        answer["usage"] = usage(routed, prompt_tokens)
        if route:
            answer["route"] = routed.trace.model_dump(mode="json")
        return answer

    def piece(self, text: str, *, first: bool = False) -> dict[str, Any]:
        """A piece of a stream."""
        return self._chunk(text, None, first)

    def last(self, routed: Routed, route: bool) -> dict[str, Any]:
        """The piece of a stream that says why it ends."""
        chunk = self._chunk("", routed.finish_reason, False)
        if route:
            chunk["route"] = routed.trace.model_dump(mode="json")
        return chunk

    def usage(self, routed: Routed, prompt_tokens: int) -> dict[str, Any]:
        """What a stream ends with if it was asked for."""
        return {
            **self._chunk("", None, False),
            "choices": [],
            "usage": usage(routed, prompt_tokens),
        }

    def _chunk(self, text: str, finish: str | None, first: bool) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish}
        if self._kind == "chat":
            delta = {"content": text} if text or first else {}
            choice["delta"] = {"role": "assistant", **delta} if first else delta
            return self._object("chat.completion.chunk", [choice])
        choice["text"] = text
        return self._object("text_completion", [choice])

    def _object(self, name: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {**self._head, "object": name, "model": self._model, "choices": choices}


def error_body(message: str, kind: str, status: int) -> dict[str, Any]:
    """An error as OpenAI's clients read it."""
    return {"error": {"message": message, "type": kind, "code": status}}
