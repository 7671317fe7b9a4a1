"""What a client asked for that became a grammar, for an error in his words. Knows no engine.

Servers turn tools, formats and choices into a grammar of the engine's, whose name the client never
wrote.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from tokenlens.errors import SpecError

WHY = (
    "beside a spec with methods: a forced token need not be one that the grammar allows. Ask for"
    " the structure in a second request"
)

FORMATS = (("response_format",), ("text", "format"), ("output_config", "format"))
"""Where clients of OpenAI's completions and responses and of Anthropic's messages ask for one."""


def problem(request: Any, fields: Iterable[str], became: str) -> SpecError:
    """The error about a request that is held to a grammar and has a spec.

    Parameters
    ----------
    request
        The request as the client wrote it: a model or a mapping.
    fields
        The engine's own fields for a grammar, of which a client may have written one.
    became
        The one of them that a format is turned into.
    """
    for path in FORMATS:
        found = request
        for step in path:
            found = _get(found, step)
        if found is not None and _get(found, "type") != "text":
            allowed = f"null (it becomes {became}) {WHY}"
            return SpecError.of(".".join(path), _plain(found), allowed)
    choice = _get(request, "tool_choice")
    kind = choice if isinstance(choice, str) else _get(choice, "type")
    if choice is not None and kind not in ("auto", "none"):
        return SpecError.of("tool_choice", _plain(choice), f"'auto' or 'none' {WHY}")
    tools = _get(request, "tools") or ()
    for index, tool in enumerate(tools):
        for place, node in (("function.strict", _get(tool, "function")), ("strict", tool)):
            if _get(node, "strict"):
                return SpecError.of(f"tools[{index}].{place}", True, f"false {WHY}")
    # Last, because a server may have put there what it made of the others.
    for name in fields:
        found = _get(request, name)
        if found is not None:
            return SpecError.of(name, _plain(found), f"null {WHY}")
    if _get(request, "parallel_tool_calls") is False:
        return SpecError.of("parallel_tool_calls", False, f"true {WHY}")
    return SpecError.of("tools", f"{len(tools)} tools", f"none that are held to a grammar, {WHY}")


def _get(node: Any, name: str) -> Any:
    if isinstance(node, str):
        return None  # has a ``format`` of its own
    return node.get(name) if isinstance(node, Mapping) else getattr(node, name, None)


def _plain(value: Any) -> Any:
    return value.model_dump(exclude_none=True) if hasattr(value, "model_dump") else value
