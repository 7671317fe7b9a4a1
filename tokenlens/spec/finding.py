"""Finds a model's think markers, from what says it best to what says it least.

In this order: the engine's own setting (its reasoning parser), the tokenizer's response template,
a rendering of its chat template, its added tokens, and last the table of families. What one of
them finds is completed from the table: other wordings, the name of a channel behind a marker,
tokens that begin a tool call.

Templates are the model owner's, never a client's; transformers renders them in Jinja's sandbox, and
what they are given and what they may write is bounded. Knows no tokenizer library.
"""

import re
import weakref
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import product
from typing import Any, NamedTuple

from tokenlens.spec.families import (
    FAMILIES,
    TOOLS,
    Family,
    family_of_model,
    family_of_parser,
)
from tokenlens.spec.phase import MAX_MARKERS, FoundBy
from tokenlens.spec.turns import added_tokens

MAX_TEMPLATE = 1 << 18
"""Characters of a chat template that is rendered."""
MAX_RENDERED = 1 << 17
MAX_TEXT = 64
"""Characters of a marker."""

ASKED, THOUGHT, SAID = "xqaskedx", "xqthoughtx", "xqsaidx"
"""Contents that stand in a rendered conversation."""


class EngineMarkers(NamedTuple):
    """What an engine's reasoning parser says."""

    parser: str
    start: str = ""
    end: str = ""
    tool: str = ""


class Found(NamedTuple):
    """Markers of a model, as texts, and how they were found.

    Attributes
    ----------
    starts
        Empty where a text begins inside of the thinking.
    """

    starts: tuple[str, ...]
    ends: tuple[str, ...]
    tools: tuple[str, ...]
    by: FoundBy


def find_markers(tokenizer: Any, engine: EngineMarkers | None = None) -> Found | None:
    """The think markers of a model, ``None`` where nothing says them.

    Parameters
    ----------
    tokenizer
        The model's, with its templates. What is found is kept for as long as it lives.
    engine
        The engine's reasoning parser, where it was started with one.
    """
    if tokenizer is None:
        return None
    state = (
        engine,
        getattr(tokenizer, "name_or_path", None),
        _text_of(getattr(tokenizer, "chat_template", None)),
        repr(getattr(tokenizer, "response_template", None))[:MAX_TEMPLATE],
        len(tokenizer) if hasattr(tokenizer, "__len__") else None,
    )
    try:
        known = _KEPT.get(tokenizer)
        if known is None or known[0] != state:
            known = _KEPT[tokenizer] = state, _find(tokenizer, engine)
    except TypeError:  # not hashable, or without weak references
        return _find(tokenizer, engine)
    return known[1]


_KEPT: "weakref.WeakKeyDictionary[Any, tuple[object, Found | None]]" = weakref.WeakKeyDictionary()


def _find(tokenizer: Any, engine: EngineMarkers | None) -> Found | None:
    added = frozenset(added_tokens(tokenizer))
    template = _text_of(getattr(tokenizer, "chat_template", None))
    ways: tuple[tuple[FoundBy, Any], ...] = (
        ("engine", lambda: _of_engine(engine, added)),
        ("response_template", lambda: _of_response_template(tokenizer, added)),
        ("chat_template", lambda: _of_chat_template(tokenizer, template, added)),
        ("vocabulary", lambda: _of_vocabulary(added, template)),
        ("family", lambda: _of_families(tokenizer, added, template)),
    )
    for by, look in ways:
        pair = look()
        if pair is not None and pair.ends:
            return _completed(pair, added, by)
    return None


class _Pair(NamedTuple):
    starts: tuple[str, ...]
    ends: tuple[str, ...]
    tools: tuple[str, ...] = ()


def _of_family(family: Family, added: frozenset[str]) -> _Pair | None:
    """A family's markers, as this vocabulary has them; None where it lacks some."""
    if family.written == "text":
        return _Pair(family.starts, family.ends, family.tools)
    if family is FAMILIES["hunyuan"]:
        found = _pairs(text for text in added if re.fullmatch(r"</?think:[\w-]+>", text))
        return found[0] if len(found) == 1 else None
    starts = tuple(text for text in family.starts if _is_written(text, added))
    ends = tuple(text for text in family.ends if _is_written(text, added))
    return _Pair(starts, ends, family.tools) if starts and ends else None


_SPECIAL = re.compile(r"<[^<>]+>|\[[^\[\]]+\]|\u25c1[^\u25b7]+\u25b7")


def _is_written(text: str, added: frozenset[str]) -> bool:
    """Whether all special pieces of a marker are tokens of their own."""
    pieces = _SPECIAL.findall(text)
    return bool(pieces) and all(piece in added for piece in pieces)


def _of_engine(engine: EngineMarkers | None, added: frozenset[str]) -> _Pair | None:
    if engine is None:
        return None
    if engine.start and engine.end:
        tools = (engine.tool,) if engine.tool else ()
        return _Pair((engine.start,), (engine.end,), tools)
    family = family_of_parser(engine.parser)
    return None if family is None else _of_family(family, added)


def _of_response_template(tokenizer: Any, added: frozenset[str]) -> _Pair | None:
    template = getattr(tokenizer, "response_template", None)
    fields = template.get("fields") if isinstance(template, Mapping) else None
    if not isinstance(template, Mapping) or not isinstance(fields, Mapping):
        return None
    for name in ("reasoning_content", "thinking", "reasoning"):
        field = fields.get(name)
        if not isinstance(field, Mapping):
            continue
        end = _text(field.get("close")) or _literal(field.get("close_pattern"))
        start = _text(field.get("open")) or _literal(field.get("open_pattern"))
        if end and not start:
            # A template that writes the start itself has an anchor that holds it.
            start = next((one for one in _starts_of(end) if _written_in(one, template)), "")
        if start and end:
            return _Pair((_start(start, added),), (_end(end, added),))
    return None


def _written_in(text: str, template: Mapping[str, Any]) -> bool:
    anchors = (template.get("start_anchor"), template.get("start_anchor_pattern"))
    return any(isinstance(one, str) and text in one.replace("\\", "") for one in anchors)


def _text(value: Any) -> str:
    return value if isinstance(value, str) and len(value) <= MAX_TEXT else ""


def _literal(pattern: Any) -> str:
    """The text that a simple pattern stands for: a marker, perhaps with blanks behind it."""
    if not isinstance(pattern, str) or len(pattern) > 4 * MAX_TEXT:
        return ""
    pattern = re.sub(r"(\\s[*+]|\\n[*+?]?|\||\$)+$", "", pattern)
    text, rest = "", pattern
    while rest:
        if rest[0] == "\\" and len(rest) > 1 and not rest[1].isalnum():
            text, rest = text + rest[1], rest[2:]
        elif rest[0] in ".^$*+?{}[]\\|()":
            return ""
        else:
            text, rest = text + rest[0], rest[1:]
    return text if len(text) <= MAX_TEXT else ""


def _of_chat_template(tokenizer: Any, template: str, added: frozenset[str]) -> _Pair | None:
    if not template or len(template) > MAX_TEMPLATE:
        return None
    for messages in _conversations():
        text = _rendered(tokenizer, messages)
        before, thought, behind = text.partition(THOUGHT)
        if not thought or THOUGHT in behind or SAID not in behind or _PRINTED.search(text):
            continue
        before = before.rpartition(ASKED)[2]
        end = _end(behind.partition(SAID)[0], added)
        start = _opened(tokenizer, messages[:1], before, end, added)
        if start and end and start != end and max(len(start), len(end)) <= MAX_TEXT:
            return _Pair((start,), (end,))
    return _of_generation_prompt(tokenizer, template)


_PRINTED = re.compile(r"['\"]type['\"]\s*:")
"""A template that knows no lists of contents prints them as they are."""


def _of_generation_prompt(tokenizer: Any, template: str) -> _Pair | None:
    """A start that the template writes at the end of a prompt, where it drops earlier thoughts."""
    asked = [{"role": "user", "content": ASKED}]
    for settings in ({}, {"enable_thinking": True}, {"thinking": True}):
        text = _rendered(tokenizer, asked, add_generation_prompt=True, **settings)
        head = text.rpartition(ASKED)[2].rstrip()
        for family in FAMILIES.values():
            for start, end in zip(family.starts, family.ends):
                if head.endswith(start.rstrip()) and end in template:
                    return _Pair((start,), (end,))
    return None


def _conversations() -> Iterable[list[dict[str, Any]]]:
    """A question, and an answer with a thought before it, as templates want it."""
    thoughts: tuple[dict[str, Any], ...] = (
        {"content": SAID, "reasoning_content": THOUGHT},
        {"content": SAID, "thinking": THOUGHT},
        {"content": SAID, "reasoning": THOUGHT},
        {"content": [{"type": "thinking", "thinking": THOUGHT}, {"type": "text", "text": SAID}]},
    )
    for listed, answer in product((False, True), thoughts):
        asked: Any = [{"type": "text", "text": ASKED}] if listed else ASKED
        said = answer["content"]
        if listed and isinstance(said, str):
            said = [{"type": "text", "text": said}]
        yield [{"role": "user", "content": asked}, {"role": "assistant", **answer, "content": said}]


def _rendered(tokenizer: Any, messages: Sequence[Mapping[str, Any]], **settings: Any) -> str:
    """What the tokenizer's own template writes; nothing where it refuses."""
    # A template may demand anything, and raise anything.
    with suppress(Exception):
        text = tokenizer.apply_chat_template(list(messages), tokenize=False, **settings)
        if isinstance(text, str) and len(text) <= MAX_RENDERED:
            return text
    return ""


def _opened(
    tokenizer: Any, asked: Sequence[Mapping[str, Any]], before: str, end: str, added: frozenset[str]
) -> str:
    """What opens the thinking, of what stands between a question and a thought.

    It is what the template writes there beyond a turn's head, or, where it opens the thinking in
    the head, the start that belongs to the end.
    """
    for start in _starts_of(end):
        if before.rstrip().endswith(start.rstrip()):
            return _start(start, added)
    head = _rendered(tokenizer, asked, add_generation_prompt=True).rpartition(ASKED)[2]
    if head and before.startswith(head):
        return _start(before[len(head) :], added)
    return ""


def _starts_of(end: str) -> list[str]:
    """The starts that belong to an end: of the families, and by its spelling."""
    found = [start for family in FAMILIES.values() if end in family.ends for start in family.starts]
    for closed, opened in (("</", "<"), ("[/", "["), ("\u25c1/", "\u25c1")):
        if end.startswith(closed):
            found.append(opened + end[len(closed) :])
    return list(dict.fromkeys(found))


def _start(text: str, added: frozenset[str]) -> str:
    """A start without the blanks around it, but for those that belong to a channel's name."""
    bare = text.strip()
    if bare in added or not _SPECIAL.search(bare):
        return bare
    return text.lstrip("\n").rstrip(" ") if _is_written(text, added) else bare


def _end(text: str, added: frozenset[str]) -> str:
    """An end alone: the token that it begins with, without what a template writes behind it."""
    bare = text.strip()
    first = max((one for one in added if one and bare.startswith(one)), key=len, default="")
    if first:
        return first
    tag = _SPECIAL.match(bare)
    return tag[0] if tag else bare.partition("\n")[0].strip()


def _of_vocabulary(added: frozenset[str], template: str) -> _Pair | None:
    found: dict[tuple[tuple[str, ...], tuple[str, ...]], _Pair] = {}
    for family in FAMILIES.values():
        pair = _of_family(family, added) if family.written != "text" else None
        if pair is not None:
            found.setdefault(pair[:2], pair)
    # Families that are not in the table, by their spelling
    for pair in _pairs(text for text in added if _THINKS.search(text)):
        if not any(pair.ends[0] in ends for _, ends in found):
            found.setdefault(pair[:2], pair)
    pairs = list(found.values())
    if len(pairs) > 1:
        pairs = [one for one in pairs if one.starts[0] in template and one.ends[0] in template]
    return pairs[0] if len(pairs) == 1 else None


_THINKS = re.compile(r"think|thought|reason(?!able)", re.IGNORECASE)
_BEGINS = (
    *(("<", "</"), ("[", "[/"), ("<|", "<|/"), ("\u25c1", "\u25c1/"), ("<|", "</|")),
    *(("begin", "end"), ("BEGIN", "END"), ("start", "end"), ("START", "END")),
    *(("open", "close"), ("prefix", "suffix")),
)


def _pairs(texts: Iterable[str]) -> list[_Pair]:
    """Tokens that belong together by their spelling: ``<x>`` and ``</x>``, begin and end."""
    names = set(texts)
    return [
        _Pair((start,), (end,))
        for start in sorted(names)
        for end in {start.replace(opened, closed, 1) for opened, closed in _BEGINS}
        if end != start and end in names
    ]


def _of_families(tokenizer: Any, added: frozenset[str], template: str) -> _Pair | None:
    """The family of the model's name, or the one whose words stand in its chat template."""
    family = family_of_model(str(getattr(tokenizer, "name_or_path", "") or ""))
    if family is not None:
        pair = _of_family(family, added)
        if pair is not None:
            return pair
    if template and len(template) <= MAX_TEMPLATE:
        for one in FAMILIES.values():
            marks = (*one.starts[:1], *one.ends[:1])
            if one.written == "text" and one.starts and all(mark in template for mark in marks):
                return _Pair(one.starts, one.ends, one.tools)
    return None


def _completed(pair: _Pair, added: frozenset[str], by: FoundBy) -> Found:
    """A pair with what the table says of it beside."""
    starts, ends = pair.starts, pair.ends
    alike = [
        one
        for one in FAMILIES.values()
        if ends[0] in one.ends
        and starts
        and any(start in starts or start.startswith(starts[0]) for start in one.starts)
    ]
    for family in alike:
        more = _of_family(family, added)
        if more is None or (family.written == "text" and len(family.starts) == 1):
            continue
        # A start with the name of its channel is meant where the bare one was found.
        longer = [one for one in more.starts if any(one.startswith(s) for s in starts)]
        kept = [one for one in starts if not any(other.startswith(one) for other in longer)]
        starts = tuple(dict.fromkeys([*kept, *longer, *more.starts]))
        ends = tuple(dict.fromkeys([*ends, *more.ends]))
    tools = [tool for tool in (*pair.tools, *TOOLS) if tool in added]
    return Found(
        starts[:MAX_MARKERS],
        ends[:MAX_MARKERS],
        tuple(one for one in dict.fromkeys(tools) if one not in ends)[:MAX_MARKERS],
        by,
    )


def _text_of(template: Any) -> str:
    """A chat template as text; of several with names the one that is rendered."""
    if isinstance(template, Mapping):
        template = template.get("default")
    return template if isinstance(template, str) else ""
