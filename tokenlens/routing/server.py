"""The router as an OpenAI-compatible server. Knows HTTP and the loop, no policy and no engine."""

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from tokenlens.errors import BackendError, BodyError, QueueFullError, RequestError, SpecError
from tokenlens.routing import fields
from tokenlens.routing.guard import Guard
from tokenlens.routing.incoming import json_body
from tokenlens.routing.metrics import Metrics
from tokenlens.routing.protocol import (
    Base,
    ChatRequest,
    CompletionRequest,
    Shape,
    error_body,
    parse,
)
from tokenlens.routing.router import Loop, Routed
from tokenlens.routing.service import ServerSettings, Service
from tokenlens.routing.settings import Role
from tokenlens.routing.vocabulary import RouterVocabulary

STATUS = {"refused": 400, "timeout": 504, "overloaded": 503, "open": 503, "unreachable": 503}
logger = logging.getLogger(__name__)


def problem(error: Exception) -> tuple[int, dict[str, Any]]:
    """Status and body of an error."""
    if isinstance(error, BodyError):
        return error.status, error_body(str(error), "invalid_request_error", error.status)
    if isinstance(error, QueueFullError):
        return 429, error_body(str(error), "overloaded", 429)
    if isinstance(error, BackendError):
        status = STATUS.get(error.kind, 502)
        return status, error_body(str(error), f"backend_{error.kind}", status)
    if isinstance(error, TimeoutError):
        return 504, error_body("the request took longer than it may", "timeout", 504)
    if isinstance(error, (SpecError, RequestError, NotImplementedError)):
        return 400, error_body(str(error), "invalid_request_error", 400)
    logger.error("a request failed inside the router", exc_info=error)
    return 500, error_body(f"{type(error).__name__} inside the router", "internal", 500)


def make_app(
    router: Loop,
    settings: ServerSettings,
    metrics: Metrics | None = None,
    templates: Mapping[Role, RouterVocabulary | None] | None = None,
    keys: Sequence[str] = (),
) -> FastAPI:
    """The server's application.

    Parameters
    ----------
    templates
        Tokenizers that write the chats, where they are not the router's own.
    keys
        API keys of clients; none: everybody may ask.
    """
    service = Service(router, settings, metrics or Metrics(), templates or router.vocabularies)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        yield
        service.prompts.close()
        await router.close()

    # Its own pages would show every client what there is.
    app = FastAPI(title="tokenlens route", lifespan=lifespan, openapi_url=None)

    @app.exception_handler(HTTPException)
    async def other(_: Request, error: HTTPException) -> JSONResponse:
        kind = "not_found" if error.status_code == 404 else "invalid_request_error"
        shown = error_body(str(error.detail), kind, error.status_code)
        return JSONResponse(shown, error.status_code, error.headers)

    app.add_middleware(
        Guard, keys=keys, hosts=settings.allowed_hosts, metrics=settings.metrics,
        held=settings.max_held,
    )  # fmt: skip
    # Outermost, so that a page is told of refusals, too; without origins, none is allowed.
    app.add_middleware(
        CORSMiddleware, allow_origins=settings.cors_origins, allow_methods=["GET", "POST"],
        allow_headers=["*"],
    )  # fmt: skip

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return await answer(service, ChatRequest, request)

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        return await answer(service, CompletionRequest, request)

    one = {"id": settings.model_name, "object": "model", "created": int(time.time()),
           "owned_by": "tokenlens"}  # fmt: skip

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [one]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> JSONResponse:
        if name == settings.model_name:
            return JSONResponse(one)
        message = f"the model {fields.shown(name, quote=True)} is not served here"
        return JSONResponse(error_body(message, "model_not_found", 404), 404)

    @app.get("/health")
    async def health() -> JSONResponse:
        states = {role: breaker.state for role, breaker in service.breakers.items()}
        is_up = not states or any(state != "open" for state in states.values())
        body = {"status": "ok" if is_up else "down", "breakers": states}
        return JSONResponse(body, 200 if is_up else 503)

    if settings.metrics != "off":

        @app.get("/metrics")
        async def measured() -> Response:
            text = service.metrics.text(service.breakers)
            return Response(text, media_type="text/plain; version=0.0.4")

    return app


def _failure(error: Exception) -> JSONResponse:
    status, shown = problem(error)
    headers = {"Retry-After": "1"} if status in (429, 503) else {}
    if isinstance(error, BodyError):
        # What is left of the body is not read.
        headers["Connection"] = "close"
    return JSONResponse(shown, status, headers)


async def answer(
    service: Service, model: type[ChatRequest | CompletionRequest], request: Request
) -> Response:
    """One request, whole or as a stream."""
    settings = service.settings
    try:
        most = settings.body_bytes(service.prompts.context)
        body = parse(model, await json_body(request, most, settings.body_timeout))
        service.prompts.check(body)
        # Before it waits for a place.
        body.arguments()
        service.steering(body)
    except ClientDisconnect:
        return Response(status_code=499)
    except Exception as error:
        return _failure(error)
    shape = Shape("chat" if isinstance(body, ChatRequest) else "text", settings.model_name)
    pieces: asyncio.Queue[str] = asyncio.Queue()
    emit = pieces.put_nowait if body.stream else None
    task = asyncio.create_task(service.run(body, emit))
    try:
        if not body.stream:
            routed, prompt_tokens = await _unless_gone(task, request)
            return JSONResponse(shape.whole(routed, prompt_tokens, body.route))
        # An error before the first piece is still a status.
        first = await _next(pieces, task, request)
    except _GoneError:
        return Response(status_code=499)
    except Exception as error:
        return _failure(error)
    events = _events(shape, body, first, pieces, task)
    return StreamingResponse(events, media_type="text/event-stream")


class _GoneError(Exception):
    """The client has left."""


async def _watch(request: Request) -> None:
    while not await request.is_disconnected():
        await asyncio.sleep(0.2)


async def _end(task: "asyncio.Task[Any]") -> None:
    """Cancel a task, once.

    Whoever waits here may be cancelled again and again; a second cancellation of the task would
    break off the closing of its connection, so nothing of that is handed on (``gather`` would).
    """
    task.cancel()
    await asyncio.wait({task})


async def _unless_gone(task: "asyncio.Task[Any]", request: Request) -> Any:
    """The task's result; cancelled where the client leaves."""
    watch = asyncio.create_task(_watch(request))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise _GoneError
        return task.result()
    finally:
        watch.cancel()
        if not task.done():
            await _end(task)


async def _next(
    pieces: asyncio.Queue[str], task: "asyncio.Task[tuple[Routed, int]]", request: Request
) -> str:
    """The first piece, or the error that came instead."""
    get = asyncio.create_task(pieces.get())
    watch = asyncio.create_task(_watch(request))
    try:
        await asyncio.wait({get, task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if get.done():
            return get.result()
        if not task.done():
            await _end(task)
            raise _GoneError
        task.result()
        return ""
    finally:
        get.cancel()
        watch.cancel()


async def _events(
    shape: Shape,
    body: Base,
    first: str,
    pieces: asyncio.Queue[str],
    task: "asyncio.Task[tuple[Routed, int]]",
) -> AsyncGenerator[str]:
    """Server-sent events; closed by the framework where the client leaves, which ends the task."""
    try:
        yield _event(shape.piece(first, first=True))
        while True:
            get = asyncio.create_task(pieces.get())
            await asyncio.wait({get, task}, return_when=asyncio.FIRST_COMPLETED)
            if get.done():
                yield _event(shape.piece(get.result()))
                continue
            get.cancel()
            break
        while not pieces.empty():
            yield _event(shape.piece(pieces.get_nowait()))
        routed, prompt_tokens = task.result()
        yield _event(shape.last(routed, body.route))
        if body.stream_options is not None and body.stream_options.include_usage:
            yield _event(shape.usage(routed, prompt_tokens))
        yield "data: [DONE]\n\n"
    except Exception as error:
        yield _event(problem(error)[1])
    finally:
        if not task.done():
            await _end(task)


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data, separators=(',', ':'))}\n\n"
