"""A tokenizer's tokens as texts: all forms of a word, and the tokens that hold some text.

Knows no tokenizer library: anything with ``encode`` and ``decode`` will do.
"""

import re
import weakref
from collections.abc import Sequence
from functools import cached_property

from tokenlens.spec.errors import SpecError
from tokenlens.spec.markers import Tokenizer, encode_text

_KEPT: "weakref.WeakKeyDictionary[Tokenizer, dict[int, Vocabulary]]" = weakref.WeakKeyDictionary()


class Vocabulary:
    """What the methods need to know of a tokenizer beyond texts that it can write.

    Parameters
    ----------
    tokenizer
        ``None`` where a request brings its markers as ids; words are then refused.
    vocab_size
        Tokens that it has.
    """

    def __init__(self, tokenizer: Tokenizer | None, vocab_size: int) -> None:
        self._tokenizer, self.vocab_size = tokenizer, vocab_size
        self._found: dict[object, tuple[int, ...]] = {}

    @classmethod
    def of(cls, tokenizer: Tokenizer | None, vocab_size: int) -> "Vocabulary":
        """The vocabulary of a tokenizer, remembered for as long as the tokenizer lives."""
        if tokenizer is None:
            return cls(None, vocab_size)
        try:
            sizes = _KEPT.setdefault(tokenizer, {})
        except TypeError:  # not hashable, or without weak references
            return cls(tokenizer, vocab_size)
        # The vocabulary must not keep its own key alive.
        return sizes.setdefault(vocab_size, cls(weakref.proxy(tokenizer), vocab_size))

    def words(
        self,
        words: Sequence[str],
        field: str,
        *,
        forms: str = "all",
        unknown: str = "error",
        limit: int,
    ) -> tuple[int, ...]:
        """Ids of the tokens that are forms of the words.

        Parameters
        ----------
        forms
            ``all``: bare, after a blank or a line break, capitalised and in lower case, each id
            once. ``bare``: the words as they stand; a word that stands twice gives its id twice.
        unknown
            ``error`` or ``skip``: what a word without any single token is.
        limit
            The most ids.

        Raises
        ------
        SpecError
            Names the words that are no token, and the forms that were found.
        """
        key = ("words", tuple(words), forms, unknown)
        if key not in self._found:
            self._found[key] = self._words(words, field, forms, unknown)
        return self._at_most(self._found[key], field, words, limit)

    def _words(self, words: Sequence[str], field: str, forms: str, unknown: str) -> tuple[int, ...]:
        found = {word: self._forms(word, forms, field) for word in words}
        missing = [word for word, ids in found.items() if not ids]
        ids = [token for word in words for token in found[word]]
        if (missing and unknown == "error") or not ids:
            known = {word: [self._text(i) for i in ids] for word, ids in found.items() if ids}
            raise SpecError.of(
                field,
                missing,
                f"words that are one token of this tokenizer; found: {known or None}",
            )
        return tuple(ids if forms == "bare" else dict.fromkeys(ids))

    def _forms(self, word: str, forms: str, field: str) -> list[int]:
        if self._tokenizer is None:
            raise SpecError.of(field, word, "nothing, because no tokenizer was given")
        if forms == "bare":
            spelled = [word]
        else:
            cases = dict.fromkeys((word, word[:1].upper() + word[1:], word.lower()))
            spelled = [before + case for before in ("", " ", "\n") for case in cases]
        found = []
        for text in spelled:
            ids = [int(i) for i in self._tokenizer.encode(text, add_special_tokens=False)]
            # Some tokenizers put the break into a token of its own.
            last = ids[-1:] if text.startswith("\n") else ids
            if len(last) == 1 and last[0] < self.vocab_size:
                written = self._text(last[0])
                same = written == text if forms == "bare" else written.strip() == text.strip()
                if same and last[0] not in found:
                    found.append(last[0])
        return found

    def matching(self, pattern: str, field: str, got: object, *, limit: int) -> tuple[int, ...]:
        """Ids of the tokens whose text holds a match of a regular expression of ours.

        Raises
        ------
        SpecError
            No token does, or more than ``limit``.
        """
        if self._tokenizer is None:
            raise SpecError.of(field, got, "nothing, because no tokenizer was given")
        key = ("matching", pattern)
        if key not in self._found:
            search = re.compile(pattern).search
            self._found[key] = tuple(i for i, text in enumerate(self.texts) if search(text))
        found = self._found[key]
        if not found:
            raise SpecError.of(field, got, "what some token of this tokenizer holds")
        return self._at_most(found, field, got, limit)

    def ending_in(self, texts: Sequence[str], field: str, *, limit: int) -> tuple[int, ...]:
        """Ids of the tokens whose text ends with one of the texts; errors as in `matching`."""
        pattern = rf"(?:{'|'.join(map(re.escape, texts))})\Z"
        return self.matching(pattern, field, list(texts), limit=limit)

    def text(self, text: str, field: str, *, limit: int) -> tuple[int, ...]:
        """The tokens of a text that is to be written, or a SpecError that names the field."""
        if self._tokenizer is None:
            raise SpecError.of(field, text, "nothing, because no tokenizer was given")
        ids = encode_text(self._tokenizer, text, field)
        if len(ids) > limit or max(ids) >= self.vocab_size:
            raise SpecError.of(field, text, f"a text of at most {limit} tokens of this vocabulary")
        return tuple(ids)

    def encoded(self, texts: Sequence[str]) -> tuple[int, ...]:
        """Every token of the texts' encodings, once."""
        if self._tokenizer is None:
            return ()
        ids = [i for text in texts for i in self._tokenizer.encode(text, add_special_tokens=False)]
        return tuple(dict.fromkeys(int(i) for i in ids if i < self.vocab_size))

    @cached_property
    def texts(self) -> list[str]:
        """The text of every token. Slow the first time: some seconds for a large vocabulary."""
        return [self._text(token) for token in range(self.vocab_size)]

    def _text(self, token: int) -> str:
        assert self._tokenizer is not None
        return self._tokenizer.decode([token])

    def _at_most(
        self, ids: tuple[int, ...], field: str, got: object, limit: int
    ) -> tuple[int, ...]:
        if len(ids) > limit:
            allowed = f"what at most {limit} tokens of this tokenizer match ({len(ids)} do)"
            raise SpecError.of(field, got, allowed)
        return ids
