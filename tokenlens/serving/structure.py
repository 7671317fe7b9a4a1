"""Structured answers beside a spec: when they can be had, and the error in the client's words.

A grammar of the engine's decides what is written from some token on; a token that tokenlens forces
there may be one that it forbids, and the engine then ends the request. So the grammar has to begin
where thinking ends, and nothing may be forced behind that. Knows no engine.

Servers turn tools, formats and choices into a grammar, whose name the client never wrote.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenlens.core import Request
from tokenlens.core.columns import END_IDS, MAX_FORCED_TOKENS, PHASE, Phase
from tokenlens.errors import SpecError
from tokenlens.spec import SoftThinking
from tokenlens.spec.needs import Need

ACTS = Need.FORCING | Need.LATENT
"""What a grammar cannot be beside: methods that decide tokens. Those that only edit logits can."""

FORMATS = (("response_format",), ("text", "format"), ("output_config", "format"))
"""Where clients of OpenAI's completions and responses and of Anthropic's messages ask for one."""


@dataclass(frozen=True)
class Grammars:
    """Where an engine's grammars begin.

    Attributes
    ----------
    ends
        The tokens that end a model's thinking for the engine's reasoning parser; a grammar holds
        behind the first of them.
    why
        Without such tokens: why, and what the operator may do.
    """

    ends: frozenset[int] = frozenset()
    why: str = "the engine has no reasoning parser; start it with --reasoning-parser"


def conflict(request: Request, grammars: Grammars) -> str | None:
    """Why a request's methods could meet the grammar of its answer; ``None``: they cannot.

    Parameters
    ----------
    request
        Bound with ``phase.reopens = False``: what was ended is not opened again.

    Raises
    ------
    SpecError
        A text of the spec's own would be forced where the grammar holds; names it.
    """
    if not request.needs & ACTS:
        return None
    if not grammars.ends:
        return f"beside methods that decide tokens, because {grammars.why}"
    ends, tools = (
        {marker.ids for marker in markers}
        for markers in (request.markers.ends, request.markers.tools)
    )
    theirs = {(token,) for token in grammars.ends}
    if request.markers.automaton is not None or not ends <= theirs <= ends | tools:
        known = [ids[0] if len(ids) == 1 else list(ids) for ids in sorted(ends | tools)]
        return (
            "beside methods that decide tokens, because the engine's reasoning parser ends thinking"
            f" at the tokens {sorted(grammars.ends)} and this request at {known}. Leave"
            " phase.think_end out, or give the parser's"
        )
    if Need.AFTER_THINKING in request.needs:
        return "beside a method that goes on in the answer (rules of the authors' code)"
    for config in request.spec.methods:
        if isinstance(config, SoftThinking) and config.rules.abort_answer_on_low_entropy:
            field = f"{config.method}.quirks.abort_answer_on_low_entropy"
            raise SpecError.of(field, True, "false beside a grammar: it forces the end of text")
    for column, value in request.columns.items():
        # Every sequence that a method may force is a column of this size.
        if column.size == MAX_FORCED_TOKENS and column is not END_IDS:
            assert isinstance(value, Sequence)
            written = [token for token in value if token >= 0]
            early = any((token,) in ends for token in written[:-1])
            if early or any((token,) in tools for token in written):
                raise SpecError.of(
                    column.name,
                    written,
                    "a text that ends with the end of thinking, beside a grammar: what stands"
                    " behind it need not be what the grammar allows",
                )
    return None


def begins_early(request: Request, prompt: Sequence[int]) -> bool:
    """Whether a request would decide tokens of an answer that is held from its first token on."""
    if not request.needs & ACTS:
        return False
    return request.at_prompt(prompt, len(prompt))[PHASE] != Phase.ANSWER


EARLY = (
    "beside methods that decide tokens, because the engine takes the thinking of this prompt for"
    " ended, and the grammar holds from the first token on"
)


def asked(request: Any) -> bool:
    """Whether what a client wrote may become a grammar."""
    names = ("structured_outputs", "tools", *(path[0] for path in FORMATS))
    return any(_get(request, name) for name in names)


def problem(request: Any, fields: Iterable[str], became: str, why: str) -> SpecError:
    """The error about a request that is held to a grammar and has a spec that cannot be.

    Parameters
    ----------
    request
        The request as the client wrote it: a model or a mapping.
    fields
        The engine's own fields for a grammar, of which a client may have written one.
    became
        The one of them that a format is turned into.
    why
        What of the spec, the engine or the prompt does not go with it.
    """
    for path in FORMATS:
        found = request
        for step in path:
            found = _get(found, step)
        if found is not None and _get(found, "type") != "text":
            allowed = f"null (it becomes {became}) {why}"
            return SpecError.of(".".join(path), _plain(found), allowed)
    choice = _get(request, "tool_choice")
    kind = choice if isinstance(choice, str) else _get(choice, "type")
    if choice is not None and kind not in ("auto", "none"):
        return SpecError.of("tool_choice", _plain(choice), f"'auto' or 'none' {why}")
    tools = _get(request, "tools") or ()
    for index, tool in enumerate(tools):
        for place, node in (("function.strict", _get(tool, "function")), ("strict", tool)):
            if _get(node, "strict"):
                return SpecError.of(f"tools[{index}].{place}", True, f"false {why}")
    # Last, because a server may have put there what it made of the others.
    for name in fields:
        found = _get(request, name)
        if found is not None:
            return SpecError.of(name, _plain(found), f"null {why}")
    if _get(request, "parallel_tool_calls") is False:
        return SpecError.of("parallel_tool_calls", False, f"true {why}")
    return SpecError.of("tools", f"{len(tools)} tools", f"none that are held to a grammar, {why}")


def _get(node: Any, name: str) -> Any:
    if isinstance(node, str):
        return None  # has a ``format`` of its own
    return node.get(name) if isinstance(node, Mapping) else getattr(node, name, None)


def _plain(value: Any) -> Any:
    return value.model_dump(exclude_none=True) if hasattr(value, "model_dump") else value
