"""vLLM's HTTP endpoints: which of them carry a spec, and what stands beside one.

What an endpoint makes of a request is seen here while it is known what the client wrote.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from tokenlens.errors import SpecError
from tokenlens.serving import metrics, structure
from tokenlens.serving.arguments import asks
from tokenlens.serving.places import Places
from tokenlens.vllm.traces import ENGINE

XARGS = ("vllm_xargs",)

PLACES: dict[str, tuple[str, ...] | None] = {
    "/cohere/v2/chat": None,
    "/cohere/v2/chat/render": None,
    **dict.fromkeys(
        (
            *("/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses"),
            *("/v1/chat/completions/render", "/v1/completions/render", "/v1/messages/render"),
            *("/v1/responses/render", "/invocations"),
        ),
        XARGS,
    ),
    "/inference/v1/generate": ("sampling_params", "extra_args"),
}
"""Where specs belong, by the end of the path: see :class:`tokenlens.serving.places.Places`."""

_written: ContextVar[Any] = ContextVar("tokenlens_written", default=None)
"""The request as the client wrote it, where vLLM makes a chat of it first."""


_serving: ContextVar[Any] = ContextVar("tokenlens_serving", default=None)
"""The front end (:class:`tokenlens.vllm.frontend.VllmFrontEnd`) whose server makes a request."""


@contextmanager
def serving(admission: Any) -> Iterator[None]:
    """Remember whose request is being made of what a client wrote."""
    token = _serving.set(admission)
    try:
        yield
    finally:
        _serving.reset(token)


@contextmanager
def refused() -> Iterator[None]:
    """Turn a refusal into vLLM's own: HTTP 400. It names its field."""
    from vllm.exceptions import VLLMValidationError

    try:
        yield
    except SpecError as error:
        metrics.count_refusal(ENGINE)
        raise VLLMValidationError(str(error), parameter=error.field) from None


def init_middleware(original: Any, args: Any, app: Any, *rest: Any, **named: Any) -> None:
    """Refuse specs that are in a place where the server would not look for them."""
    from starlette.middleware import Middleware

    original(args, app, *rest, **named)
    count = functools.partial(metrics.count_refusal, ENGINE)
    # The innermost: behind keys and whatever else stands in front.
    app.user_middleware.append(Middleware(Places, places=PLACES, refused=count))


def to_sampling_params(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    """Refuse a grammar that a spec cannot be beside by the name that the client wrote.

    Where no front end is known, as of ``/render``, the engine that gets the request looks.
    """
    params = original(self, *args, **kwargs)
    admission, held = _serving.get(), getattr(params, "structured_outputs", None) is not None
    if admission is not None and held and asks(params.extra_args):
        with refused():
            why = admission.why_unstructured(params)
            if why is not None:
                name = "structured_outputs"
                raise structure.problem(_written.get() or self, (name,), name, why)
    return params


def no_trace(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    """Refuse a spec where the answer has no place for its trace."""
    if asks(getattr(self, "vllm_xargs", None)):
        with refused():
            raise SpecError.of(
                "vllm_xargs",
                "a spec for tokenlens",
                "none here, because a transcript has no place for a trace",
            )
    return original(self, *args, **kwargs)


async def create_messages(original: Any, self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
    """Remember what an Anthropic client wrote."""
    token = _written.set(request)
    try:
        return await original(self, request, *args, **kwargs)
    finally:
        _written.reset(token)


def to_beam_search_params(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    """Refuse beams for a request with a spec, which vLLM would not pass on to them."""
    if asks(getattr(self, "vllm_xargs", None)):
        with refused():
            raise SpecError.of(
                "use_beam_search",
                True,
                "false beside a spec for tokenlens, because beam search would feed a mixture to"
                " another beam. Use n with a temperature instead",
            )
    return original(self, *args, **kwargs)
