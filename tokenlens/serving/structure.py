"""Structured answers beside a spec: when they can be had, and the error in the client's words.

A grammar of the engine's decides what is written from some token on; a token that tokenlens forces
there may be one that it forbids, and the engine then ends the request. So the grammar has to begin
where thinking ends, and nothing may be forced behind that. Knows no engine.

Servers turn tools, formats and choices into a grammar, whose name the client never wrote.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from tokenlens.core import Request
from tokenlens.core.columns import END_IDS, MAX_FORCED_TOKENS, PHASE, Phase
from tokenlens.errors import SpecError
from tokenlens.spec import SoftThinking
from tokenlens.spec.finding import EngineMarkers
from tokenlens.spec.markers import marker_of
from tokenlens.spec.needs import Need
from tokenlens.spec.phase import MAX_MARKERS, NONE, PhaseConfig, markers_in
from tokenlens.spec.registry import AnyMethod
from tokenlens.spec.resolution import resolve_phase

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
    spoken
        Those of them with which the answer begins, as what opens a tool call: the grammar has to
        take them.
    why
        Without such tokens: why, and what the operator may do.
    """

    ends: frozenset[int] = frozenset()
    spoken: frozenset[int] = frozenset()
    why: str = "the engine has no reasoning parser; start it with --reasoning-parser"


UNKNOWN = Grammars()
"""Where nobody has said."""


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
    if not _decides(request):
        return None
    if not grammars.ends:
        return f"beside methods that decide tokens, because {grammars.why}"
    always, ever = request.markers.closing()
    ends = frozenset(marker.ids[-1] for marker in request.markers.ends)
    tools = frozenset(marker.ids[-1] for marker in request.markers.tools)
    # Over for us wherever it is for the engine. Else only where it must not be mixed any more; a
    # budget forces what the engine knows, and what is no part of the answer.
    if not (grammars.ends <= always and ever - tools <= grammars.ends - grammars.spoken >= ends):
        return (
            "beside methods that decide tokens, because the engine's reasoning parser ends thinking"
            f" at the tokens {sorted(grammars.ends)} and this request at {sorted(ever)}. Leave"
            " phase.think_end and phase.tool_start out, or give the parser's"
        )
    if Need.AFTER_THINKING in request.needs:
        return "beside a method that goes on in the answer (rules of the authors' code)"
    for config in request.spec.methods:
        _refuse_end_of_text(config)
    for column, value in request.columns.items():
        # Every sequence that a method may force is a column of this size.
        if column.size == MAX_FORCED_TOKENS and column is not END_IDS:
            assert isinstance(value, Sequence)
            written = [token for token in value if token >= 0]
            early = grammars.ends.intersection(written[:-1])
            if early or grammars.spoken.intersection(written):
                raise SpecError.of(
                    column.name,
                    written,
                    "a text that ends with the end of thinking, beside a grammar: what stands"
                    " behind it need not be what the grammar allows",
                )
    return None


def _refuse_end_of_text(config: AnyMethod) -> None:
    """Refuse a method that would end the text of an answer."""
    got: Any
    control = getattr(config, "switch_control", None)
    if isinstance(config, SoftThinking) and config.rules.abort_answer_on_low_entropy:
        field, got, allowed = "quirks.abort_answer_on_low_entropy", True, "false"
    elif control is not None:
        field, got, allowed = "switch_control", control, "null"
    elif config.ends_text and getattr(config, "active", "output") == "output":
        field, got, allowed = "active", "output", "thinking"
    else:
        return
    allowed += " beside a grammar: it forces the end of the text, where the answer may have none"
    raise SpecError.of(f"{config.method}.{field}", got, allowed)


def _decides(request: Request) -> bool:
    return bool(request.needs & ACTS) or request.spec.ends_text


def agreeing(
    phase: PhaseConfig, tokenizer: Any, engine: EngineMarkers | None, grammars: Grammars
) -> PhaseConfig:
    """The phase of a request whose answer is held to a grammar.

    Thinking that has ended stays ended, and what the client left open ends it exactly where it does
    for the engine's reasoning parser.

    Raises
    ------
    SpecError
        As :func:`tokenlens.spec.resolution.resolve_phase` does.
    """
    found = resolve_phase(phase, tokenizer, engine).model_copy(update={"reopens": False})
    if found.markers == NONE or not grammars.ends:
        return found
    ends, tools = (
        [_exact(tokenizer, marker, grammars.ends) for marker in markers_in(given)]
        for given in (found.think_end, found.tool_start)
    )
    values: dict[str, Any] = {}
    if phase.think_end is None:
        closing = grammars.ends - grammars.spoken
        theirs = [_Exact((token,), token) for token in sorted(closing)]
        ends = [one for one in ends if one.token in closing] or ends or theirs
    if phase.tool_start is None:
        rest = grammars.ends.difference(one.token for one in (*ends, *tools) if one.token >= 0)
        tools = [one for one in tools if one.token in grammars.ends]
        tools += [_Exact((token,), token) for token in sorted(rest)]
    for name, markers in (("think_end", ends), ("tool_start", tools)):
        if len(markers) <= MAX_MARKERS:
            written = tuple(one.marker for one in markers)
            values[name] = written[0] if len(written) == 1 else written or None
    return found.model_copy(update={**values, "found": found.found or "spec"})


class _Exact(NamedTuple):
    marker: Any
    token: int = -1  # none: of several tokens, or not the parser's


def _exact(tokenizer: Any, marker: Any, ends: frozenset[int]) -> _Exact:
    """A marker as the very token that the engine looks for, where it is one of these."""
    ids, text = marker_of(tokenizer, marker, default="", field="phase")
    if len(ids) != 1 or ids[0] not in ends:
        return _Exact(marker)
    return _Exact(marker if text is None else ids, ids[0])


def begins_early(request: Request, prompt: Sequence[int]) -> bool:
    """Whether a request would decide tokens of an answer that is held from its first token on."""
    if not _decides(request):
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
