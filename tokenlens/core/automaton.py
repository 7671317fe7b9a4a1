"""Markers followed over the texts of tokens: an automaton of bytes, lifted to a vocabulary.

The state is the longest suffix of the text so far that is a prefix of a marker (Aho and Corasick,
1975), so that a marker is seen whatever its first and last characters have been merged with. Tokens
that do the same in every state are one class: a vocabulary needs a class for each token, and the
transitions are a small table of states and classes. Knows no device and no tokenizer library.
"""

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from tokenlens.core.columns import Phase
from tokenlens.core.marker_columns import AT, AT_SHIFT, EFFECT, HOT, STATE_SHIFT

Ints = NDArray[np.int64]

TOOL = 3
"""What the begin of a tool call means: it ends thinking, but is no end that anybody waits for."""

MAX_BYTES = (1 << 15) - 1
"""Longer tokens count as this long where a short one is looked for."""


class Trie:
    """The automaton over symbols, bytes or token ids.

    Parameters
    ----------
    patterns
        What each means, a number from 1 to ``EFFECT``. Of two that end at the same place the
        longer one counts.

    Attributes
    ----------
    symbols
        The symbols that occur, in order; all others are alike.
    paths
        What each node stands for: every part that some pattern begins with.
    delta, out
        ``[nodes, 1 + len(symbols)]``: the next node, and what has been completed, 0 for nothing; by
        1 + index of the symbol, 0 for the others.
    fail
        ``[nodes]``: the node of its longest proper suffix.
    """

    def __init__(self, patterns: Mapping[tuple[int, ...], int]) -> None:
        self.symbols = sorted({symbol for pattern in patterns for symbol in pattern})
        place = {symbol: 1 + index for index, symbol in enumerate(self.symbols)}
        # Shorter ones first: the node of a suffix is there before it is asked for.
        parts = {pattern[:n] for pattern in patterns for n in range(len(pattern))} | {()}
        self.paths = sorted(parts, key=lambda path: (len(path), path))
        self.nodes = {path: node for node, path in enumerate(self.paths)}
        size = len(self.paths), 1 + len(place)
        self.delta: Ints = np.zeros(size, dtype=np.int64)
        self.out: Ints = np.zeros(size, dtype=np.int64)
        self.fail: Ints = np.zeros(len(self.paths), dtype=np.int64)
        for node, path in enumerate(self.paths):
            if len(path) > 1:
                # What the parent's suffix has done
                parent = self.nodes[path[:-1]]
                self.fail[node] = self.delta[self.fail[parent], place[path[-1]]]
            self.delta[node] = self.delta[self.fail[node]]
            self.out[node] = self.out[self.fail[node]]
            for symbol, column in place.items():
                longer = (*path, symbol)
                self.out[node, column] = patterns.get(longer, self.out[node, column])
                self.delta[node, column] = self.nodes.get(longer, self.delta[node, column])


class Tokens:
    """The texts of a vocabulary, in orders that can be searched."""

    def __init__(self, texts: Sequence[bytes]) -> None:
        self.texts = list(texts)
        # [vocab]
        self.lengths: Ints = np.fromiter(map(len, self.texts), np.int64, len(self.texts))
        # [bytes of all tokens] each
        self._bytes = np.frombuffer(b"".join(self.texts), np.uint8)
        self._owner = np.repeat(np.arange(len(self.texts)), self.lengths)
        self._stop: Ints = np.cumsum(self.lengths)
        self._start: Ints = self._stop - self.lengths
        self._order: Ints = np.array(
            sorted(range(len(self.texts)), key=self.texts.__getitem__), dtype=np.int64
        )
        self._sorted = [self.texts[i] for i in self._order.tolist()]

    def joined(self, ids: Sequence[int]) -> tuple[bytes, list[int]]:
        """The text of some tokens, and where each stops in it; ids of no token have no text."""
        numbers: Ints = np.asarray(ids, dtype=np.int64)
        known = (numbers >= 0) & (numbers < len(self.texts))
        numbers = numbers[known]
        text = b"".join(map(self.texts.__getitem__, numbers.tolist()))
        lengths: Ints = np.zeros(len(known), dtype=np.int64)
        lengths[known] = self.lengths[numbers]
        return text, np.cumsum(lengths).tolist()

    def starting_with(self, text: bytes) -> Ints:
        """Ids of the tokens that begin with a text."""
        first = bisect_left(self._sorted, text)
        behind = _next_text(text)
        last = len(self._sorted) if behind is None else bisect_left(self._sorted, behind)
        return self._order[first:last]

    def equal_to(self, text: bytes) -> Ints:
        """Ids of the tokens that are a text."""
        first = bisect_left(self._sorted, text)
        last = bisect_left(self._sorted, text + b"\0", first)
        return self._order[first:last]

    def holding(self, text: bytes) -> tuple[Ints, Ints, Ints, Ints]:
        """Where tokens hold a text, and where they end with a part of it.

        Returns
        -------
        tokens, stops
            Of each place that holds the text: the token, and where the text stops in it.
        tokens, lengths
            Of each token's end that is a proper prefix of the text: the token and the prefix's
            length.
        """
        at = np.flatnonzero(self._bytes == text[0])
        parts: list[Ints] = []
        lengths: list[Ints] = []
        for length in range(1, len(text)):
            over = self._stop[self._owner[at]] - at == length
            parts.append(self._owner[at[over]])
            lengths.append(np.full(int(over.sum()), length, dtype=np.int64))
            at = at[~over]
            at = at[self._bytes[at + length] == text[length]]
        owner = self._owner[at]
        none: Ints = np.zeros(0, dtype=np.int64)
        return (
            owner,
            at + len(text) - self._start[owner],
            np.concatenate([none, *parts]),
            np.concatenate([none, *lengths]),
        )


@dataclass(frozen=True, eq=False)
class Automaton:
    """Markers over a vocabulary.

    Attributes
    ----------
    classes
        ``[vocab]`` int16: each token's class; 0 is that of the tokens that no marker is about.
    moves
        ``[states, num_classes]`` int32: the next state, shifted by ``STATE_SHIFT``, and what the
        token does (see :mod:`tokenlens.core.marker_columns`).
    early
        States in which no end of thinking has begun, at the beginning of a token of one.
    """

    classes: NDArray[np.int16]
    moves: NDArray[np.int32]
    early: tuple[int, ...]

    @cached_property
    def key(self) -> str:
        """Equal for the same markers, whoever made the automaton and when."""
        made = blake2b(repr(self.moves.shape).encode(), digest_size=16)
        for part in (self.classes, self.moves):
            made.update(np.ascontiguousarray(part).tobytes())
        return made.hexdigest()

    def run(self, ids: Sequence[int], state: int = 0) -> tuple[int, int]:
        """The last transition and the last effect, after some tokens."""
        entry = state << STATE_SHIFT
        effect = 0
        for token in ids:
            group = self.classes[token] if 0 <= token < len(self.classes) else 0
            entry = int(self.moves[entry >> STATE_SHIFT, group])
            effect = entry & EFFECT or effect
        return entry, effect

    def leading_to(self, phase: int) -> tuple[frozenset[int], frozenset[int]]:
        """Tokens that lead to a phase whatever stands before them, and those that ever do."""
        leads = (self.moves & EFFECT) == phase
        always, ever = (np.flatnonzero(found) for found in (leads.all(axis=0), leads.any(axis=0)))
        tokens = (np.flatnonzero(np.isin(self.classes, groups)) for groups in (always, ever))
        first, second = (frozenset(found.tolist()) for found in tokens)
        return first, second

    def hot(self) -> tuple[int, ...]:
        """Tokens that end thinking, or that can only begin its end, in an early state."""
        groups = np.flatnonzero((self.moves[list(self.early)] & HOT).any(axis=0))
        return tuple(np.flatnonzero(np.isin(self.classes, groups)).tolist())


@dataclass(frozen=True)
class Ends:
    """What methods want to know of a text that has begun to be an end of thinking.

    Attributes
    ----------
    begun
        Of each pattern that ends thinking, the length from which on it can only be this one.
    written
        Of parts of the end that is forced, how many of its tokens they are.
    """

    begun: Mapping[tuple[int, ...], int]
    written: Mapping[tuple[int, ...], int]

    def of(self, trie: Trie) -> tuple[NDArray[np.bool_], Ints, tuple[int, ...]]:
        """For each node, whether an end has begun there, and the tokens that are written.

        And the early nodes: in front of that, the root, the parts of the forced end, all parts of
        an end that can soon be told.
        """
        begun = {end[:n] for end, least in self.begun.items() for n in range(least, len(end))}
        found = np.zeros(len(trie.paths), dtype=bool)
        at: Ints = np.zeros(len(trie.paths), dtype=np.int64)
        # A node's suffix comes before the node.
        for node, path in enumerate(trie.paths[1:], start=1):
            suffix = trie.fail[node]
            found[node] = path in begun or found[suffix]
            at[node] = self.written.get(path, at[suffix])
        soon = {
            end[:n] for end, least in self.begun.items() if least < len(end) for n in range(least)
        }
        early = [
            node
            for node, path in enumerate(trie.paths)
            if not found[node] and (not path or at[node] or path in soon)
        ]
        return found, at, tuple(early)


def of_ids(patterns: Mapping[tuple[int, ...], int], vocab_size: int, ends: Ends) -> Automaton:
    """The automaton of markers that are given as token ids."""
    trie = Trie(patterns)
    classes = np.zeros(vocab_size, dtype=np.int16)
    classes[trie.symbols] = np.arange(1, 1 + len(trie.symbols))
    begun, at, early = ends.of(trie)
    return Automaton(classes, _moves(trie.delta, trie.out, begun, at), early)


def of_texts(patterns: Mapping[tuple[int, ...], int], tokens: Tokens, ends: Ends) -> Automaton:
    """The automaton of markers that are given as bytes."""
    trie = Trie(patterns)
    alike = _alike(patterns, tokens, trie)
    touched = np.flatnonzero(alike)
    first, found = _classes(alike[touched], tokens.lengths[touched])
    classes = np.zeros(len(tokens.texts), dtype=np.int16)
    classes[touched] = 1 + found
    # One token of each class tells what all of them do.
    nodes, effects = _walk(trie, [tokens.texts[i] for i in touched[first].tolist()])
    # A token without any text changes nothing at all.
    if b"" in tokens.texts:
        classes[tokens.equal_to(b"")] = nodes.shape[1]
        nodes = np.hstack([nodes, np.arange(len(nodes))[:, None]])
        effects = np.hstack([effects, np.zeros_like(effects[:, :1])])
    begun, at, early = ends.of(trie)
    return Automaton(classes, _moves(nodes, effects, begun, at), early)


def _classes(numbers: Ints, lengths: Ints) -> tuple[Ints, Ints]:
    """A shortest token of each class, and each token's class: equal numbers are one.

    In time that grows with the tokens: a marker of one blank is about most of a vocabulary.
    """
    place: Ints = np.full(int(numbers.max(initial=0)) + 1, -1, dtype=np.int64)
    # Of several assignments the last one stays.
    longest_first = np.argsort(-np.minimum(lengths, MAX_BYTES).astype(np.int16), kind="stable")
    place[numbers[longest_first]] = longest_first
    used = np.flatnonzero(place >= 0)
    first = place[used]
    place[used] = np.arange(len(used))
    return first, place[numbers]


def _ranked(numbers: Ints) -> tuple[Ints, Ints]:
    """The different numbers in order, and for each number which one it is. None is negative."""
    most = int(numbers.max(initial=0))
    if most > 8 * len(numbers):
        found, inverse = np.unique(numbers, return_inverse=True)
        return found, inverse.reshape(-1)
    # Sorting a whole vocabulary takes longer than counting.
    place: Ints = np.zeros(most + 1, dtype=np.int64)
    place[numbers] = 1
    found = np.flatnonzero(place)
    place[found] = np.arange(len(found))
    return found, place[numbers]


def _walk(trie: Trie, texts: Sequence[bytes]) -> tuple[Ints, Ints]:
    """What texts do from every node, ``[nodes, 1 + len(texts)]`` each; column 0 is untouched.

    Returns
    -------
    nodes, effects
        The node afterwards, and what was completed last.
    """
    symbols: Ints = np.zeros(256, dtype=np.int64)
    symbols[trie.symbols] = np.arange(1, 1 + len(trie.symbols))
    nodes, effects = np.zeros((2, 1 + len(texts), len(trie.paths)), dtype=np.int64)
    # All texts at once, byte by byte: the longest ones first, so that those left are in front.
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
    lengths = np.array([len(texts[i]) for i in order], dtype=np.int64)
    longest = int(lengths.max(initial=0))
    letters = np.frombuffer(
        b"".join(texts[i].ljust(longest, b"\0") for i in order), np.uint8
    ).reshape(len(order), longest)
    at: Ints = np.tile(np.arange(len(trie.paths)), (len(order), 1))
    last = np.zeros_like(at)
    for offset in range(longest):
        left = int((lengths > offset).sum())
        here, column = at[:left], symbols[letters[:left, offset]][:, None]
        done = trie.out[here, column]
        np.copyto(last[:left], done, where=done > 0)
        at[:left] = trie.delta[here, column]
    place = np.array(order, dtype=np.int64) + 1
    nodes[place], effects[place] = at, last
    return np.ascontiguousarray(nodes.T), np.ascontiguousarray(effects.T)


def both(first: Automaton, second: Automaton) -> Automaton:
    """Two automata side by side: each state is one of each."""
    size, width = len(second.moves), second.moves.shape[1]
    pairs = first.classes.astype(np.int64) * width + second.classes
    kinds, classes = _ranked(np.concatenate([np.zeros(1, dtype=np.int64), pairs]))
    a, b = first.moves[:, kinds // width][:, None], second.moves[:, kinds % width][None]
    node = (a >> STATE_SHIFT).astype(np.int64) * size + (b >> STATE_SHIFT)
    at = np.maximum(a & AT, b & AT)
    effect = np.maximum(a & EFFECT, b & EFFECT)
    moves = (node << STATE_SHIFT) | at | ((a | b) & HOT) | effect
    early = tuple(i * size + j for i in first.early for j in second.early)
    moves = moves.reshape(-1, len(kinds)).astype(np.int32)
    return Automaton(classes[1:].astype(np.int16), moves, early)


def _moves(nodes: Ints, effects: Ints, begun: NDArray[np.bool_], at: Ints) -> NDArray[np.int32]:
    hot = np.where(begun[nodes] | (effects == Phase.ANSWER), HOT, 0)
    leads = np.where(effects == TOOL, int(Phase.ANSWER), effects)
    moves = (nodes << STATE_SHIFT) | (at[nodes] << AT_SHIFT) | hot | leads
    return moves.astype(np.int32)


def _alike(patterns: Mapping[tuple[int, ...], int], tokens: Tokens, trie: Trie) -> Ints:
    """``[vocab]``: a number for each token; equal ones do the same in every state, 0 nothing.

    What a token does depends on what it does alone, on the rests of patterns that it begins with,
    and, where it is a piece of a pattern, on itself.
    """
    size = len(tokens.texts)
    length, node, effect, stop = np.zeros((4, size), dtype=np.int64)
    # Of two that stop at the same place the longer one counts.
    for pattern, meaning in sorted(patterns.items(), key=lambda item: len(item[0])):
        text = bytes(pattern)
        inside, stops, ending, lengths = tokens.holding(text)
        # Of several assignments the last one stays: places come in their order, lengths too.
        last, best = np.zeros((2, size), dtype=np.int64)
        last[inside], best[ending] = stops, lengths
        later = np.flatnonzero((last > 0) & (last >= stop))
        stop[later], effect[later] = last[later], meaning
        longer = np.flatnonzero(best > length)
        length[longer] = best[longer]
        prefixes = np.array([trie.nodes[pattern[:n]] for n in range(len(pattern))])
        node[longer] = prefixes[best[longer]]
    numbers = (node * (EFFECT + 1) + effect) * (1 + int(stop.max(initial=0))) + stop
    count = int(numbers.max(initial=0)) + 1
    for group in _groups(patterns, tokens):
        numbers[group] = count + _ranked(numbers[group])[1]
        count += len(group)
    return numbers


def _groups(patterns: Mapping[tuple[int, ...], int], tokens: Tokens) -> Iterator[Ints]:
    """Tokens that begin with the rest of a pattern, and tokens that are a piece of one."""
    texts = [bytes(pattern) for pattern in patterns]
    for rest in {text[start:] for text in texts for start in range(1, len(text))}:
        yield tokens.starting_with(rest)
    pieces: set[bytes] = set()
    for text in texts:
        for start in range(1, len(text)):
            for stop in range(start + 1, len(text)):
                piece = text[start:stop]
                if piece in pieces:
                    continue
                if len(tokens.starting_with(piece)) == 0:
                    break
                pieces.add(piece)
                yield tokens.equal_to(piece)


def _next_text(text: bytes) -> bytes | None:
    """The first text behind all those that begin with a text, ``None`` if there is none."""
    kept = text.rstrip(b"\xff")
    return kept[:-1] + bytes([kept[-1] + 1]) if kept else None
