"""The think markers of one request: how its tokens are followed, and what its prompt says.

Knows no device: what a step reads are columns and an automaton.
"""

import weakref
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate

from tokenlens.core.automaton import TOOL, Automaton, Ends, Tokens, both, of_ids, of_texts
from tokenlens.core.columns import Phase
from tokenlens.core.marker_table import MAX_MOVES
from tokenlens.spec import SpecError, Tokenizer
from tokenlens.spec.bounded import Bounded
from tokenlens.spec.markers import Marker, stands_alone
from tokenlens.spec.texts import texts_of
from tokenlens.spec.turns import Turns, turns_of

BLANKS = 64
"""The most tokens behind an end of thinking that may all be blank."""
TAIL = 512
"""The last tokens of a prompt, in which a marker that is not whole yet must have begun."""


@dataclass(frozen=True, eq=False)
class Markers:
    """Markers of a request, resolved for one tokenizer.

    Attributes
    ----------
    starts, ends
        What opens thinking and what ends it; the first end is the one that is forced.
    tools
        What begins a tool call, which ends thinking as well.
    tokens
        The vocabulary's texts; ``None`` where no marker is followed as text.
    turns
        What ends a turn of a conversation.
    automaton
        ``None`` where every marker is a token of its own.
    opens
        Whether the model's own start marker opens thinking.
    """

    starts: tuple[Marker, ...]
    ends: tuple[Marker, ...]
    tools: tuple[Marker, ...]
    vocab_size: int
    tokens: Tokens | None
    tokenizer: Tokenizer | None
    turns: Turns
    automaton: Automaton | None
    opens: bool

    @cached_property
    def marks(self) -> dict[int, int]:
        """Markers that are single tokens, with the phases that they lead to."""
        if self.automaton is not None:
            return {}
        starts = self.starts if self.opens else ()
        found = {marker.ids[0]: int(Phase.THINKING) for marker in starts}
        ends = (*self.ends, *self.tools)
        return found | {marker.ids[0]: int(Phase.ANSWER) for marker in ends}

    @property
    def num_bytes(self) -> int:
        """Roughly its memory, without what all markers of a tokenizer share."""
        if self.automaton is None:
            return 1024
        return 1024 + self.automaton.classes.nbytes + self.automaton.moves.nbytes

    def leads(self, ids: Sequence[int]) -> int:
        """The phase that tokens lead to by themselves, 0 if they have no marker."""
        if self.automaton is not None:
            return self.automaton.run(ids)[1]
        return next((self.marks[i] for i in reversed(ids) if i in self.marks), 0)

    def closing(self) -> tuple[frozenset[int], frozenset[int]]:
        """Tokens that end thinking whatever stands before them, and those that ever do."""
        if self.automaton is not None:
            return self.automaton.leading_to(int(Phase.ANSWER))
        ids = frozenset(token for token, lead in self.marks.items() if lead == Phase.ANSWER)
        return ids, ids

    @cached_property
    def end_begins(self) -> tuple[int, ...]:
        """Tokens that end thinking, or that can only begin its end, whatever stands before."""
        if self.automaton is None:
            return tuple(marker.ids[0] for marker in self.ends)
        return self.automaton.hot()

    def after(self, prompt: Sequence[int]) -> tuple[Phase, int, int]:
        """What a prompt leaves a request in.

        Returns
        -------
        phase
            In which the first generated token stands. The last marker decides. An open start means
            ``THINKING``, if no end of a turn follows it: somebody else's words, or an earlier turn
            that was cut off. An end means ``ANSWER`` if nothing but blanks follow it (a chat
            template that switches thinking off); an end with something behind it belongs to an
            earlier turn, and the model has yet to begin: ``PROMPT``.
        thinking
            Tokens of an open thinking that the prompt holds.
        entry
            The automaton's last transition.
        """
        entry = 0
        if self.automaton is not None:
            entry = self.automaton.run(prompt[-TAIL:])[0]
        text = b""
        stops: list[int] = []
        if self.tokens is not None:
            text, stops = self.tokens.joined(prompt)
        started, ended = (
            max((_last(marker, prompt, text, stops) for marker in markers), default=NOWHERE)
            for markers in (self.starts, (*self.ends, *self.tools))
        )
        at = max(started, ended)
        behind, said = prompt[at[0] :], text[len(text) + at[1] :]
        if started > ended:
            # The token that holds a marker's end may hold what follows it.
            written = None if self.tokens is None else said.decode(errors="replace")
            if self.turns.follow(behind, self.tokenizer, written):
                return Phase.PROMPT, 0, entry
            return Phase.THINKING, len(behind), entry
        if ended > NOWHERE and self._is_blank(behind, said):
            return Phase.ANSWER, 0, entry
        return Phase.PROMPT, 0, entry

    def _is_blank(self, ids: Sequence[int], text: bytes) -> bool:
        """Whether nothing but blanks follow an end: tokens, or a text that says more."""
        if not ids and not text:
            return True
        if len(ids) > BLANKS:
            return False
        if self.tokens is not None:
            return not text.decode(errors="replace").strip()
        # Without a tokenizer nobody knows; a chat template's blanks and an earlier turn's answer
        # differ only in the phase that the trace gives.
        return self.tokenizer is not None and not self.tokenizer.decode(ids).strip()


NOWHERE = (-1, 0, 0)


def _last(
    marker: Marker, prompt: Sequence[int], text: bytes, stops: Sequence[int]
) -> tuple[int, int, int]:
    """Where a marker stops that nothing follows: tokens before that, and minus bytes behind it.

    And its length: of two that stop at the same place the longer one counts.
    """
    if marker.text is not None:
        at = text.rfind(marker.text)
        if at < 0:
            return NOWHERE
        at += len(marker.text)
        return bisect_left(stops, at) + 1, at - len(text), len(marker.text)
    length = len(marker.ids)
    newest, wanted = list(reversed(prompt)), list(reversed(marker.ids))
    at = -1
    with suppress(ValueError):
        while True:
            at = newest.index(wanted[0], at + 1)
            if newest[at : at + length] == wanted:
                stop = len(prompt) - at
                if not stops:
                    return stop, 0, length
                begin = stops[stop - length - 1] if stop > length else 0
                return stop, stops[stop - 1] - len(text), stops[stop - 1] - begin
    return NOWHERE


def resolve(
    starts: Sequence[Marker],
    ends: Sequence[Marker],
    tools: Sequence[Marker] = (),
    *,
    vocab_size: int,
    tokenizer: Tokenizer | None,
    turn_ends: Sequence[int],
    opens: bool,
    forced: bool = True,
) -> Markers:
    """The markers of a request: what they are for a tokenizer, kept for the next one with them.

    Parameters
    ----------
    turn_ends
        Tokens that are known to end a turn.
    opens
        Whether the model's own start marker opens thinking. Where thinking begins with the first
        token whatever it is, nobody looks for one, and thinking that is over is over for good.
    forced
        Whether the first end may be forced.
    """
    cache = _cache_of(tokenizer, vocab_size)
    key = (tuple(starts), tuple(ends), tuple(tools), tuple(turn_ends), opens, forced)
    known = cache.markers.get(key)
    if known is None:
        turns = cache.turns.also(turn_ends)
        known = _resolve(*key[:3], opens, forced, vocab_size, tokenizer, cache, turns)
        cache.markers.put(key, known, known.num_bytes)
    return known


MAX_KEPT = 64
MAX_KEPT_BYTES = 64 << 20
"""Resolved markers that are kept for each tokenizer: clients repeat theirs."""
MAX_SIZES = 8
"""Vocabulary sizes for which something is kept."""


class _Cache:
    """What is known of a tokenizer."""

    def __init__(self, tokenizer: Tokenizer | None, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self.markers: Bounded[Markers] = Bounded(MAX_KEPT, MAX_KEPT_BYTES)
        self._tokens: Tokens | None = None
        self.turns = turns_of(tokenizer)

    def tokens(self, tokenizer: Tokenizer) -> Tokens:
        """The vocabulary's texts. Slow the first time."""
        if self._tokens is None:
            self._tokens = Tokens(texts_of(tokenizer, self._vocab_size).contents)
        return self._tokens


_KEPT: "weakref.WeakKeyDictionary[Tokenizer, dict[int, _Cache]]" = weakref.WeakKeyDictionary()
_WITHOUT: dict[int, _Cache] = {}


def _cache_of(tokenizer: Tokenizer | None, vocab_size: int) -> _Cache:
    sizes = _WITHOUT
    if tokenizer is not None:
        try:
            sizes = _KEPT.setdefault(tokenizer, {})
        except TypeError:  # not hashable, or without weak references
            return _Cache(tokenizer, vocab_size)
    if vocab_size not in sizes:
        while len(sizes) >= MAX_SIZES:
            del sizes[next(iter(sizes))]
        sizes[vocab_size] = _Cache(tokenizer, vocab_size)
    return sizes[vocab_size]


def prepare(tokenizer: Tokenizer, vocab_size: int) -> None:
    """Make now what the first request with a marker of several tokens would wait for."""
    _cache_of(tokenizer, vocab_size).tokens(tokenizer)


def _resolve(
    starts: tuple[Marker, ...],
    ends: tuple[Marker, ...],
    tools: tuple[Marker, ...],
    opens: bool,
    forced: bool,
    vocab_size: int,
    tokenizer: Tokenizer | None,
    cache: _Cache,
    turns: Turns,
) -> Markers:
    every = (*starts, *ends, *tools)
    if all(marker.text is None and len(marker.ids) == 1 for marker in every):
        return Markers(starts, ends, tools, vocab_size, None, tokenizer, turns, None, opens)
    tokens = None
    if any(marker.text is not None for marker in every):
        assert tokenizer is not None
        tokens = cache.tokens(tokenizer)
        starts, ends, tools = (
            tuple(_as_written(marker, tokens) for marker in markers)
            for markers in (starts, ends, tools)
        )
    by_id: dict[tuple[int, ...], int] = {}
    by_text: dict[tuple[int, ...], int] = {}
    # An end that is also what begins a tool call is an end.
    for markers, effect in (
        (starts if opens else (), int(Phase.THINKING)),
        (tools, TOOL),
        (ends, int(Phase.ANSWER)),
    ):
        for marker in markers:
            if marker.text is None:
                by_id[marker.ids] = effect
            else:
                by_text[tuple(marker.text)] = effect
    found = []
    if by_id:
        plain = tuple(marker.ids for marker in ends if marker.text is None)
        first = ends[0].ids if forced and ends and ends[0].text is None else ()
        found.append(_of_ids(tuple(by_id.items()), plain, first, vocab_size))
    if by_text:
        assert tokens is not None
        begun = {
            tuple(marker.text): _least(marker, tokens, tokenizer)
            for marker in ends
            if marker.text is not None
        }
        written = {}
        if forced and ends and ends[0].text is not None:
            written = _parts(tuple(ends[0].text), _stops(ends[0], tokens))
        found.append(of_texts(by_text, tokens, Ends(begun, written)))
    automaton = found[0] if len(found) == 1 else both(*found)
    if automaton.moves.size > MAX_MOVES:
        raise SpecError.of(
            "phase",
            [marker.text.decode(errors="replace") for marker in every if marker.text is not None],
            f"shorter markers: these need {automaton.moves.size} transitions, at most {MAX_MOVES}",
        )
    return Markers(starts, ends, tools, vocab_size, tokens, tokenizer, turns, automaton, opens)


@lru_cache(maxsize=MAX_KEPT)
def _of_ids(
    patterns: tuple[tuple[tuple[int, ...], int], ...],
    ends: tuple[tuple[int, ...], ...],
    first: tuple[int, ...],
    vocab_size: int,
) -> Automaton:
    """One for all tokenizers: it does not look at them."""
    written = _parts(first, range(len(first)))
    return of_ids(dict(patterns), vocab_size, Ends(dict.fromkeys(ends, 1), written))


def _as_written(marker: Marker, tokens: Tokens) -> Marker:
    """A marker with its text as its own tokens write it: some tokenizers know no blanks."""
    if marker.text is None:
        return marker
    text = b"".join(tokens.texts[i] for i in marker.ids)
    return marker if marker.text in text else marker._replace(text=text)


def _stops(marker: Marker, tokens: Tokens) -> list[int]:
    """How much of a marker's text is there after none, one, two ... of its tokens."""
    assert marker.text is not None
    lengths = [len(tokens.texts[i]) for i in marker.ids]
    # Some tokenizers put a blank in front.
    before = b"".join(tokens.texts[i] for i in marker.ids).find(marker.text)
    return [max(0, stop - before) for stop in accumulate(lengths, initial=0)][:-1]


def _parts(whole: tuple[int, ...], stops: Iterable[int]) -> dict[tuple[int, ...], int]:
    return {whole[:stop]: at for at, stop in enumerate(stops) if 0 < stop < len(whole)}


BRACKETS = "<[{(\u25c1\u27e8\u3008\u300a\u3010\u00ab"


def _least(marker: Marker, tokens: Tokens, tokenizer: Tokenizer | None) -> int:
    """From which length on a text can only be this end: at a token's end, as it is written.

    A special token is nothing else. A bracket with a second sign ("</", "<|") is next to never: it
    would be a pity to break it off in the middle. Words are common ("Here is my"): they are no
    more than words until the whole marker is there.
    """
    assert marker.text is not None
    for token, stop in zip(marker.ids, _stops(marker, tokens)[1:]):
        text = marker.text[:stop].decode(errors="ignore").lstrip()
        signs = [letter for letter in text if not letter.isalnum() and not letter.isspace()]
        tag = len(signs) > 1 and text[0] in BRACKETS
        if stop and (tag or (tokenizer is not None and stands_alone(tokenizer, token))):
            return stop
    return len(marker.text)
