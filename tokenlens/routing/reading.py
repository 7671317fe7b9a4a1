"""What a model's server sends, read with a bound: lines of a stream, whole bodies, errors.

A server is no friend: its line, its body and its error text may have any length, and a compressed
answer any length behind few bytes, so none is asked for and none is taken.
"""

from collections.abc import AsyncGenerator

import httpx

from tokenlens.errors import TooLongError

MAX_LINE = 1 << 20
"""Bytes of one event of a stream, beside the ids of the prompt that vLLM puts into the first."""
MAX_BODY = 64 << 20
"""Bytes of an answer in one piece: one entry for each token of a prompt, at most."""
MAX_ERROR = 64 << 10
"""Bytes of an error's body that are read."""

HEADERS = {"Accept-Encoding": "identity"}


def _check_encoding(response: httpx.Response) -> None:
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise TooLongError("a compressed answer, though none was asked for")


async def lines(response: httpx.Response, longest: int, most: int) -> AsyncGenerator[str]:
    """Lines of a stream, without their ends.

    Parameters
    ----------
    longest
        Bytes of one line.
    most
        Bytes of them all.

    Raises
    ------
    TooLongError
        A line or the stream is longer.
    """
    _check_encoding(response)
    rest, total = b"", 0
    async for piece in response.aiter_raw():
        total += len(piece)
        if total > most:
            raise TooLongError(f"a stream of more than {most} bytes")
        # Joined once a piece: a line may come in many, and is no longer than `longest`.
        *whole, rest = (rest + piece).split(b"\n")
        for line in whole:
            if len(line) > longest:
                raise TooLongError(f"an event of more than {longest} bytes")
            yield line.removesuffix(b"\r").decode("utf-8", "replace")
        if len(rest) > longest:
            raise TooLongError(f"an event of more than {longest} bytes")
    if rest:
        yield rest.decode("utf-8", "replace")


async def body(response: httpx.Response, most: int | None = None) -> bytes:
    """A whole body.

    Raises
    ------
    TooLongError
        It is longer than ``most`` bytes, :data:`MAX_BODY` if not given.
    """
    most = MAX_BODY if most is None else most
    _check_encoding(response)
    pieces, total = [], 0
    async for piece in response.aiter_raw():
        total += len(piece)
        if total > most:
            raise TooLongError(f"an answer of more than {most} bytes")
        pieces.append(piece)
    return b"".join(pieces)


async def error_text(response: httpx.Response) -> str:
    """The beginning of an error's body; the rest is left, and the connection with it."""
    try:
        _check_encoding(response)
    except TooLongError as error:
        return str(error)
    found = b""
    async for piece in response.aiter_raw():
        found += piece
        if len(found) >= MAX_ERROR:
            break
    return found[:MAX_ERROR].decode("utf-8", "replace")
