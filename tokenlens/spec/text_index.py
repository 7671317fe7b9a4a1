"""Where words stand in the texts of a vocabulary, without a look at every text.

All texts stand behind one another in one array. Places are sorted by their first letters once, so
that a word leads to the few places where it can stand, and only those are compared letter by
letter. Case is folded as Python's ``re.IGNORECASE`` does it. Knows no tokenizer.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Small = NDArray[np.int32]
Flags = NDArray[np.bool_]

FIRST = 3
"""Letters by which places are sorted: 21 bits each, as many as fit into one number."""

_BITS = 21
_MULTIPLE: dict[str, int] = {}


def fold(letter: str) -> int:
    """A number that two letters share if they are the same but for case.

    Letters are the same to ``re`` if their simple lower cases are, or if those have one upper case.
    """
    # One letter has a lower case of two; `re` takes the first of them.
    lower = letter.lower()[0]
    upper = lower.upper()
    return ord(upper) if len(upper) == 1 else _MULTIPLE.setdefault(upper, ord(lower))


class TextIndex:
    """The texts of a vocabulary in an order that can be searched.

    Parameters
    ----------
    texts
        By token id.

    Attributes
    ----------
    compared
        Places that were looked at since it was made: what searching costs, for tests.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self.size, self.compared = len(texts), 0
        lengths = np.fromiter(map(len, texts), np.int64, len(texts))
        whole = "".join(texts)
        codes = np.frombuffer(whole.encode("utf-32-le", "surrogatepass"), np.uint32)
        letters, place = np.unique(codes, return_inverse=True)
        folded: Ints = np.array([fold(chr(code)) for code in letters], dtype=np.int64)
        words = np.array([_is_word(chr(code)) for code in letters], dtype=bool)
        folded = np.append(folded[place], -1)
        inside = np.append(words[place], False)
        self._owner: Small = np.repeat(np.arange(len(texts), dtype=np.int32), lengths)
        self._stop: Ints = np.cumsum(lengths)
        # [letters of all texts + 1] each; the last one belongs to no text
        self._codes: Small = np.append(codes.astype(np.int32), np.int32(-1))
        self._keys = self._keys_of(folded)
        # [letters of all texts], in the order of the keys: where it stands, whose it is, how many
        # letters its text has from there on, whether a word may begin there
        self._places: Small = np.argsort(self._keys[:-1], kind="stable").astype(np.int32)
        self._sorted = self._keys[self._places]
        self._whose = self._owner[self._places]
        self._left: Small = (self._stop[self._whose] - self._places).astype(np.int32)
        start = self._stop - lengths
        self._opens = (self._places == start[self._whose]) | ~inside[self._places - 1]
        self._inside = inside

    def _keys_of(self, folded: Ints) -> Ints:
        """Each place's first letters as one number; 0 is behind the end of its text."""
        size = len(folded) - 1
        left = self._stop[self._owner] - np.arange(size)
        keys: Ints = np.zeros(size + 1, dtype=np.int64)
        for offset in range(FIRST):
            letter = np.append(folded[offset:-1], np.zeros(min(offset, size), np.int64))
            keys[:-1] = (keys[:-1] << _BITS) | np.where(left > offset, letter + 1, 0)
        return keys

    def holding(self, words: Iterable[str], *, whole: bool = False) -> Flags:
        """Which texts hold one of the words, whatever the case: ``[size]`` bool.

        Parameters
        ----------
        whole
            Only where neither a letter, a digit nor an underscore stands before or behind it.
        """
        found: Flags = np.zeros(self.size, dtype=bool)
        for word in dict.fromkeys(words):
            at = self._ranks(word)
            if whole:
                at = at[self._opens[at]]
                ends = self._left[at] == len(word)
                at = at[ends | ~self._inside[self._places[at] + len(word)]]
            found[self._whose[at]] = True
        return found

    def ending_in(self, texts: Iterable[str]) -> Flags:
        """Which texts end with one of these, case included: ``[size]`` bool."""
        found: Flags = np.zeros(self.size, dtype=bool)
        for text in dict.fromkeys(texts):
            at = self._ranks(text)
            at = self._places[at[self._left[at] == len(text)]]
            for offset, letter in enumerate(text):
                at = at[self._codes[at + offset] == ord(letter)]
            found[self._owner[at]] = True
        return found

    def _ranks(self, word: str) -> Ints:
        """Where a word stands, whatever the case, as indices into the sorted places."""
        letters = [fold(letter) + 1 for letter in word]
        low, high = _block(letters[:FIRST])
        first = int(np.searchsorted(self._sorted, low, "left"))
        last = int(np.searchsorted(self._sorted, high, "right"))
        at: Ints = np.arange(first, last)
        self.compared += len(at)
        if len(letters) > FIRST:
            at = at[self._left[at] >= len(letters)]
        for offset in range(FIRST, len(letters), FIRST):
            low, high = _block(letters[offset : offset + FIRST])
            keys = self._keys[self._places[at] + offset]
            at = at[(low <= keys) & (keys <= high)]
            self.compared += len(at)
        return at


def _block(letters: Sequence[int]) -> tuple[int, int]:
    """The smallest and the largest key of a place that begins with a few letters."""
    low = high = 0
    for offset in range(FIRST):
        known = offset < len(letters)
        low = (low << _BITS) | (letters[offset] if known else 0)
        high = (high << _BITS) | (letters[offset] if known else (1 << _BITS) - 1)
    return low, high


def _is_word(letter: str) -> bool:
    """Whether ``re`` counts a letter as part of a word."""
    return letter.isalnum() or letter == "_"
