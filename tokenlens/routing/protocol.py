"""The part of OpenAI's API that a router serves: requests, and the shapes of its answers."""

import secrets
import time
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from tokenlens.routing.router import Routed
from tokenlens.routing.settings import Sampling

MAX_PROMPT_CHARACTERS = 4 << 20

# Fields whose effect would be lost or wrong when two models write one text in many calls.
REFUSED: dict[str, tuple[Any, ...]] = {
    "n": (1,), "best_of": (1,), "logprobs": (False, 0), "top_logprobs": (0,), "tools": ([],),
    "functions": ([],), "logit_bias": ({},), "presence_penalty": (0,), "frequency_penalty": (0,),
    "repetition_penalty": (1,), "min_p": (0,), "response_format": ({"type": "text"},),
    "stop": ([],),
    "echo": (False,), "suffix": ("",), "guided_json": (), "structured_outputs": (),
}  # fmt: skip


class StreamOptions(BaseModel):
    """What a stream ends with."""

    include_usage: bool = False


class Base(BaseModel):
    """What chat and completion requests share. Unknown fields of others' dialects are ignored."""

    model_config = ConfigDict(extra="allow")

    model: str | None = None
    max_tokens: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=1_000_000)] | None = None
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    route: bool = Field(False, description="put the route into the answer")

    @property
    def limit(self) -> int | None:
        """Tokens that the answer may have."""
        return self.max_completion_tokens or self.max_tokens

    def sampling(self) -> Sampling:
        """As the loop takes it; a request without a seed gets one."""
        return Sampling(
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=self.top_p or 1.0,
            top_k=max(0, self.top_k or 0),
            seed=secrets.randbits(63) if self.seed is None else self.seed,
        )

    def refused(self) -> str | None:
        """Why the request cannot be carried out, if so."""
        for name, allowed in REFUSED.items():
            value = (self.model_extra or {}).get(name)
            if value is not None and value not in allowed:
                return (
                    f"{name}: got {str(value)[:80]!r}; allowed: leave it out, because two models"
                    " write the text in many calls, each of which would apply it anew"
                )
        return None


class Message(BaseModel):
    """One message; other fields go to the chat template."""

    model_config = ConfigDict(extra="allow")

    role: Annotated[str, Field(max_length=64)]
    content: Annotated[str, Field(max_length=MAX_PROMPT_CHARACTERS)] | None = None


class ChatRequest(Base):
    """``/v1/chat/completions``."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=4096)]
    chat_template_kwargs: dict[str, Any] = {}


class CompletionRequest(Base):
    """``/v1/completions``."""

    prompt: (
        Annotated[str, Field(min_length=1, max_length=MAX_PROMPT_CHARACTERS)]
        | Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, max_length=1 << 20)]
    )


def usage(routed: Routed, prompt_tokens: int) -> dict[str, Any]:
    """OpenAI's usage, and each model's beside it."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": routed.tokens,
        "total_tokens": prompt_tokens + routed.tokens,
        "models": {role: one.model_dump() for role, one in routed.trace.usage.items()},
    }


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
