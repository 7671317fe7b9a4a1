"""A request's body on its way in: its type, its length, its time, and then its JSON."""

import asyncio
from typing import Any

from fastapi import Request
from pydantic_core import from_json

from tokenlens.errors import BodyError

MAX_BODY = 16 << 20
"""Bytes of a body, whatever the models can read."""


async def json_body(request: Request, most: int, seconds: float) -> Any:
    """The JSON of a request.

    Parameters
    ----------
    most
        Bytes, with or without a ``Content-Length``.
    seconds
        Until the last byte of it is here.

    Raises
    ------
    BodyError
        415 for another type: a page of another origin may send text without asking, JSON it may
        not. 413, 408, and 400 for what is no JSON.
    """
    kind, *parameters = request.headers.get("content-type", "").lower().split(";")
    named = [text.replace(" ", "").replace('"', "").partition("=") for text in parameters]
    is_utf8 = all(value in ("utf-8", "utf8") for name, _, value in named if name == "charset")
    if kind.strip() != "application/json" or not is_utf8:
        raise BodyError(415, "Content-Type: allowed: application/json, in UTF-8")
    if request.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        raise BodyError(415, "Content-Encoding: allowed: identity; compressed bodies are not read")
    length = request.headers.get("content-length", "")
    too_long = BodyError(413, f"the body: allowed: at most {most} bytes")
    if length.isdecimal() and int(length[:20]) > most:
        raise too_long
    pieces, total = [], 0
    try:
        async with asyncio.timeout(seconds):
            async for piece in request.stream():
                total += len(piece)
                if total > most:
                    raise too_long
                pieces.append(piece)
    except TimeoutError:
        raise BodyError(408, f"the body: not here after {seconds:g} seconds") from None
    try:
        return from_json(b"".join(pieces), allow_inf_nan=False)
    except ValueError as error:
        # It says where, not what.
        raise BodyError(400, f"the body: no JSON: {error}") from None
