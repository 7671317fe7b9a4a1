"""Specs at a place where nobody reads them: they are refused, not ignored. Knows no engine.

Servers drop fields that they do not know. A spec in such a field would be decoded without, and
nobody would be told; so whatever has our name is looked for in the whole body of a request.
"""

import json
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from functools import partial
from typing import Any

from tokenlens.errors import MAX_FIELD, SpecError
from tokenlens.serving.arguments import KEY, PREFIX
from tokenlens.serving.off_loop import off_loop

CONTENT = frozenset(
    {
        *("messages", "prompt", "suffix", "system", "text", "input", "input_ids", "documents"),
        *("query", "items", "image_data", "tools", "functions", "response_format", "schema"),
        *("structured_outputs", "json_schema", "guided_json", "output_config", "logit_bias"),
        # Handed back by the client as they came, our traces among them.
        *("kv_transfer_params", "ec_transfer_params"),
    }
)
"""Fields whose content is the client's own, at any depth: names in there are no fields of ours."""

MAX_DEPTH = 32
NESTED = (dict, list, tuple, Mapping)
BODY = 64 << 20
"""Bytes of a body that are looked at; an engine's own bound is far below."""

QUICK = 1 << 18
"""Bytes of a body that is looked at in a few milliseconds."""

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


def ours(name: object) -> bool:
    """Whether a field's name is one of ours, or nearly."""
    return isinstance(name, str) and name.lstrip("_").lower().startswith(KEY)


def mentions(body: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Where fields of ours are in a body, and what is there; entries of lists have no place."""
    # Not by recursion: a body may hold a million of mappings, and others wait meanwhile.
    below = [(body, path)]
    while below:
        node, path = below.pop()
        if isinstance(node, Mapping):
            for name, value in node.items():
                if ours(name):
                    yield (*path, name), value
                elif isinstance(value, NESTED) and name not in CONTENT and len(path) < MAX_DEPTH:
                    below.append((value, (*path, str(name))))
        elif isinstance(node, (list, tuple)):
            below += [(value, path) for value in node if isinstance(value, NESTED)]


def check_place(body: Any, place: tuple[str, ...] | None, inside: str = "") -> None:
    """Refuse a spec that is elsewhere than at its place.

    Parameters
    ----------
    place
        Where specs belong in this body; ``None`` where it cannot carry one.
    inside
        What the body is a part of, for the message.

    Raises
    ------
    SpecError
        Names where it is, and where it belongs.
    """
    before = (inside,) if inside else ()
    for path, found in mentions(body):
        if place is None:
            allowed = "none here: this endpoint carries no spec, and would not have applied it"
        elif path[:-1] != place:
            right = ".".join((*before, *place, KEY))
            allowed = f"{right}, and nowhere else, because nobody would have read it"
        elif path[-1] != KEY and not path[-1].startswith(PREFIX):
            allowed = f"{KEY}, or fields that begin with {PREFIX}"
        else:
            continue
        field = ".".join((*before, *path))
        if len(field) > MAX_FIELD:  # its end says more
            field = "…" + field[1 - MAX_FIELD :]
        raise SpecError.of(field, found, allowed)


class Places:
    """An ASGI application in front of another: refuses bodies with a spec at a wrong place.

    Parameters
    ----------
    app
        What answers all other requests.
    places
        Where specs belong, by the end of the path, of which the first counts; ``None``, and other
        paths: nowhere.
    refused
        Called for each request that is refused.
    """

    def __init__(
        self,
        app: Callable[[Scope, Receive, Send], Awaitable[None]],
        places: Mapping[str, tuple[str, ...] | None],
        refused: Callable[[], None],
    ) -> None:
        self._app, self._places, self._refused = app, places, refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on as it came."""
        if scope["type"] != "http" or scope["method"] not in ("POST", "PUT"):
            await self._app(scope, receive, send)
            return
        messages: list[MutableMapping[str, Any]] = []
        body = bytearray()
        more = True
        while more and len(body) <= BODY:
            message = await receive()
            messages.append(message)
            body += message.get("body", b"")
            more = bool(message.get("more_body", False))
        find = partial(self._problem, scope["path"], body)
        # The event loop has other clients than one with a body of megabytes.
        problem = find() if len(body) <= QUICK else await off_loop(find)
        if problem is not None:
            self._refused()
            await _answer(send, problem)
            return

        async def again() -> MutableMapping[str, Any]:
            return messages.pop(0) if messages else await receive()

        await self._app(scope, again, send)

    def _problem(self, path: str, body: bytearray) -> SpecError | None:
        if KEY.encode() not in body.lower():
            return None
        try:
            content = json.loads(body)
        except (ValueError, RecursionError):
            return None  # the server says what it thinks of it
        ends = (place for end, place in self._places.items() if path.rstrip("/").endswith(end))
        try:
            check_place(content, next(ends, None))
        except SpecError as error:
            return error
        return None


async def _answer(send: Send, problem: SpecError) -> None:
    said = {
        "message": str(problem),
        "type": "invalid_request_error",
        "param": problem.problems[0].field,
        "code": 400,
    }
    # OpenAI's shape, and beside it the flat one of SGLang.
    content = json.dumps({"object": "error", **said, "error": said}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(content))]
    await send({"type": "http.response.start", "status": 400, "headers": headers})
    await send({"type": "http.response.body", "body": content})
