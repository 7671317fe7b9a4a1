"""Traces in the text of a streamed response: in the chunk that ends their choice."""

import json
from collections.abc import Callable, Mapping
from typing import Any

DATA = "data: "


def with_traces(
    chunk: str,
    found: dict[int, Any],
    put: Callable[[dict[str, Any], dict[str, Any], Any], None],
) -> str:
    """A chunk with the traces of the choices that it ends; all other chunks as they came.

    Parameters
    ----------
    found
        Traces by the index of their choice; those that are put in are taken out.
    put
        Is given the chunk's content, the choice, and its trace.
    """
    if not chunk.startswith(DATA + "{"):
        return chunk
    content: dict[str, Any] = json.loads(chunk.removeprefix(DATA))
    ended = [choice for choice in content.get("choices", ()) if _ends(choice, found)]
    for choice in ended:
        put(content, choice, found.pop(choice["index"]))
    return f"{DATA}{json.dumps(content, ensure_ascii=False)}\n\n" if ended else chunk


def _ends(choice: Mapping[str, Any], found: Mapping[int, Any]) -> bool:
    return choice.get("finish_reason") is not None and choice["index"] in found
