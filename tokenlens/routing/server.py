"""The router as an OpenAI-compatible server. Knows HTTP and the loop, no policy and no engine."""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Mapping
from typing import Any, Literal

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse

from tokenlens.routing.backend import BackendError
from tokenlens.routing.metrics import Metrics
from tokenlens.routing.protocol import Base, ChatRequest, CompletionRequest, Shape, error_body
from tokenlens.routing.router import Routed, Router
from tokenlens.routing.service import QueueFullError, ServerSettings, Service
from tokenlens.routing.settings import Role
from tokenlens.routing.vocabulary import Vocabulary
from tokenlens.spec import SpecError

STATUS = {"refused": 400, "timeout": 504, "overloaded": 503, "open": 503, "unreachable": 503}
MAX_BODY = 16 << 20


def problem(error: Exception) -> tuple[int, dict[str, Any]]:
    """Status and body of an error."""
    if isinstance(error, QueueFullError):
        return 429, error_body(str(error), "overloaded", 429)
    if isinstance(error, BackendError):
        status = STATUS.get(error.kind, 502)
        return status, error_body(str(error), f"backend_{error.kind}", status)
    if isinstance(error, TimeoutError):
        return 504, error_body("the request took longer than it may", "timeout", 504)
    if isinstance(error, (SpecError, NotImplementedError)):
        return 400, error_body(str(error), "invalid_request_error", 400)
    return 500, error_body(f"{type(error).__name__} inside the router", "internal", 500)


class BoundedBody:
    """Turns away bodies above :data:`MAX_BODY`.

    A plain wrapper: behind one of the framework's own, a client that leaves is not seen.
    """

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        headers = dict(scope.get("headers", ()))
        length = headers.get(b"content-length", b"0").decode("latin-1")
        chunked = b"transfer-encoding" in headers
        if scope["type"] == "http" and (
            chunked or not length.isdecimal() or int(length) > MAX_BODY
        ):
            message = f"a body of unknown length or of {length[:20]} bytes; allowed: {MAX_BODY}"
            response = JSONResponse(error_body(message, "invalid_request_error", 413), 413)
            await response(scope, receive, send)
            return
        await self._app(scope, receive, send)


def make_app(
    router: Router,
    settings: ServerSettings,
    metrics: Metrics | None = None,
    templates: Mapping[Role, Vocabulary | None] | None = None,
) -> FastAPI:
    """The server's application.

    Parameters
    ----------
    templates
        Tokenizers that write the chats, where they are not the router's own.
    """
    service = Service(router, settings, metrics or Metrics(), templates or router.vocabularies)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        yield
        await router.close()

    app = FastAPI(title="tokenlens route", lifespan=lifespan)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        lines = [
            f"{'.'.join(str(at) for at in line['loc'][1:])}: {line['msg']}"
            for line in error.errors()
        ]
        return JSONResponse(error_body("\n".join(lines), "invalid_request_error", 400), 400)

    app.add_middleware(BoundedBody)

    @app.post("/v1/chat/completions")
    async def chat(body: ChatRequest, request: Request) -> Response:
        return await answer(service, "chat", body, request)

    @app.post("/v1/completions")
    async def completions(body: CompletionRequest, request: Request) -> Response:
        return await answer(service, "text", body, request)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        one = {"id": settings.model_name, "object": "model", "owned_by": "tokenlens"}
        return {"object": "list", "data": [one]}

    @app.get("/health")
    async def health() -> JSONResponse:
        states = {role: breaker.state for role, breaker in service.breakers.items()}
        is_up = not states or any(state != "open" for state in states.values())
        body = {"status": "ok" if is_up else "down", "breakers": states}
        return JSONResponse(body, 200 if is_up else 503)

    @app.get("/metrics")
    async def measured() -> Response:
        text = service.metrics.text(service.breakers)
        return Response(text, media_type="text/plain; version=0.0.4")

    return app


async def answer(
    service: Service,
    kind: Literal["chat", "text"],
    body: ChatRequest | CompletionRequest,
    request: Request,
) -> Response:
    """One request, whole or as a stream."""
    if (reason := body.refused()) is not None:
        return JSONResponse(error_body(reason, "invalid_request_error", 400), 400)
    try:
        prompts = service.prompts(body)
    except SpecError as error:
        status, shown = problem(error)
        return JSONResponse(shown, status)
    except Exception as error:  # a chat template may raise anything
        shown = error_body(
            f"messages: the chat template says: {error}", "invalid_request_error", 400
        )
        return JSONResponse(shown, 400)
    shape = Shape(kind, service.settings.model_name)
    prompt_tokens = service.tokens(prompts["large"])
    pieces: asyncio.Queue[str] = asyncio.Queue()
    emit = pieces.put_nowait if body.stream else None
    task = asyncio.create_task(service.run(body, prompts, emit))
    try:
        if not body.stream:
            routed = await _unless_gone(task, request)
            return JSONResponse(shape.whole(routed, prompt_tokens, body.route))
        # An error before the first piece is still a status.
        first = await _next(pieces, task, request)
    except _GoneError:
        return Response(status_code=499)
    except Exception as error:
        status, shown = problem(error)
        headers = {"Retry-After": "1"} if status in (429, 503) else None
        return JSONResponse(shown, status, headers)
    events = _events(shape, body, first, pieces, task, prompt_tokens)
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


async def _next(pieces: asyncio.Queue[str], task: "asyncio.Task[Routed]", request: Request) -> str:
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
    task: "asyncio.Task[Routed]",
    prompt_tokens: int,
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
        routed = task.result()
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
