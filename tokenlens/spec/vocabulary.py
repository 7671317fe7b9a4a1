"""A request's view of a tokenizer: all forms of a word, and the tokens that hold some text.

A server searches in its front end; what was found travels with the request, and its worker takes
it as *given* instead of searching again.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from tokenlens.spec.errors import SpecError, shorten
from tokenlens.spec.markers import Tokenizer, encode_text
from tokenlens.spec.texts import Texts, texts_of

if TYPE_CHECKING:
    from tokenlens.spec.text_index import Flags

Ids = tuple[int, ...]


class Vocabulary:
    """What the methods need to know of a tokenizer beyond texts that it can write.

    Parameters
    ----------
    tokenizer
        ``None`` where a request brings its markers as ids; words are then refused.
    vocab_size
        Ids that can be tokens.
    given
        Sets of tokens that were found before, by field.

    Attributes
    ----------
    found
        Every set that was asked for, by field.
    """

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        vocab_size: int,
        given: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        self._tokenizer, self.vocab_size = tokenizer, vocab_size
        self._texts = None if tokenizer is None else texts_of(tokenizer, vocab_size)
        self._given = given or {}
        self.found: dict[str, Ids] = {}

    @classmethod
    def of(cls, tokenizer: Tokenizer | None, vocab_size: int) -> "Vocabulary":
        """The vocabulary of a tokenizer, remembered for as long as the tokenizer lives."""
        made = cls(tokenizer, vocab_size)
        if made._texts is None:
            return made
        # The vocabulary must not keep its own key alive.
        made._tokenizer = made._texts.tokenizer
        found = made._texts.views.setdefault(vocab_size, made)
        assert isinstance(found, cls)
        return found

    def words(
        self,
        words: Sequence[str],
        field: str,
        *,
        forms: str = "all",
        unknown: str = "error",
        limit: int,
    ) -> Ids:
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
        return self.answer(
            field, words, lambda texts: self._words(texts, words, field, forms, unknown), key, limit
        )

    def matching(
        self,
        words: Sequence[str],
        field: str,
        *,
        exclude: Sequence[str] = (),
        whole: bool = True,
        limit: int,
    ) -> Ids:
        """Ids of the tokens whose text holds one of the words, whatever the case.

        Parameters
        ----------
        exclude
            Tokens that hold one of these anywhere are left out.
        whole
            Only words that stand alone, not those inside of longer ones.

        Raises
        ------
        SpecError
            No token does, or more than ``limit``.
        """

        def search(texts: Texts) -> Ids:
            index = texts.index
            return self._ids(index.holding(words, whole=whole) & ~index.holding(exclude))

        key = ("matching", tuple(words), tuple(exclude), whole)
        return self._some(field, list(words), search, key, limit)

    def ending_in(self, texts: Sequence[str], field: str, *, limit: int) -> Ids:
        """Ids of the tokens whose text ends with one of the texts; errors as in `matching`."""
        key = ("ending_in", tuple(texts))
        return self._some(
            field, list(texts), lambda found: self._ids(found.index.ending_in(texts)), key, limit
        )

    def encoded(self, texts: Sequence[str], field: str, *, limit: int) -> Ids:
        """Every token of the texts' encodings, once, and at most ``limit`` of them."""
        if self._tokenizer is None:
            return ()

        def search(found: Texts) -> Ids:
            ids = [token for encoded in found.encode(texts) for token in encoded]
            return tuple(dict.fromkeys(i for i in ids if i < self.vocab_size))[:limit]

        return self.answer(field, texts, search, ("encoded", tuple(texts), limit), limit)

    def single_tokens(self, texts: Sequence[str], field: str, *, limit: int) -> Ids:
        """Those of the texts that are one token each, in the order of ids, at most ``limit``."""
        if self._tokenizer is None:
            return ()

        def search(found: Texts) -> Ids:
            ids = {ids[0] for ids in found.encode(texts) if len(ids) == 1}
            return tuple(sorted(i for i in ids if i < self.vocab_size))[:limit]

        return self.answer(field, texts, search, ("single", tuple(texts), limit), limit)

    def text(self, text: str, field: str, *, limit: int) -> Ids:
        """The tokens of a text that is to be written, or a SpecError that names the field."""
        if self._tokenizer is None:
            raise SpecError.of(field, text, "nothing, because no tokenizer was given")
        ids = encode_text(self._tokenizer, text, field)
        if len(ids) > limit or max(ids) >= self.vocab_size:
            raise SpecError.of(field, text, f"a text of at most {limit} tokens of this vocabulary")
        return tuple(ids)

    @property
    def texts(self) -> list[str]:
        """The text of every token. Made on first use, some seconds for a large vocabulary."""
        size = self.vocab_size
        found = [] if self._texts is None else self._texts.texts[:size]
        return found + [""] * (size - len(found))

    def answer(
        self,
        field: str,
        got: object,
        search: Callable[[Texts], Ids],
        key: tuple[object, ...] | None,
        limit: int,
    ) -> Ids:
        """A set of tokens: the one that was given, or what the search finds.

        Parameters
        ----------
        search
            Finds it, or raises; what it raises is not kept.
        key
            Under which it is kept for other requests; ``None``: it is not.
        limit
            The most ids.

        Raises
        ------
        SpecError
            More than ``limit``, or a given set that cannot be one of this vocabulary.
        """
        if field in self._given:
            ids = self._checked(field, limit)
        else:
            if self._texts is None:
                raise SpecError.of(field, got, "nothing, because no tokenizer was given")
            texts = self._texts
            key = None if key is None else (*key, self.vocab_size)
            known = None if key is None else texts.kept.get(key)
            ids = search(texts) if known is None else known
            if len(ids) > limit:
                allowed = f"what at most {limit} tokens of this tokenizer match ({len(ids)} do)"
                raise SpecError.of(field, got, allowed)
            # A search without a result is refused by most; what is refused is not kept.
            if known is None and key is not None and ids:
                texts.kept.put(key, ids, _size_of(key) + 40 * len(ids))
        self.found[field] = ids
        return ids

    def _some(
        self,
        field: str,
        got: object,
        search: Callable[[Texts], Ids],
        key: tuple[object, ...],
        limit: int,
    ) -> Ids:
        ids = self.answer(field, got, search, key, limit)
        if not ids:
            raise SpecError.of(field, got, "what some token of this tokenizer holds")
        return ids

    def _checked(self, field: str, limit: int) -> Ids:
        ids = self._given[field]
        right = isinstance(ids, (list, tuple)) and len(ids) <= limit
        if not right or not all(type(i) is int and 0 <= i < self.vocab_size for i in ids):
            allowed = f"at most {limit} token ids below {self.vocab_size}, as the front end found"
            raise SpecError.of(field, ids, allowed)
        return tuple(ids)

    def _words(
        self, texts: Texts, words: Sequence[str], field: str, forms: str, unknown: str
    ) -> Ids:
        found = self._forms(texts, words, forms)
        missing = [word for word, ids in found.items() if not ids]
        ids = [token for word in words for token in found[word]]
        if (missing and unknown == "error") or not ids:
            known = {word: [texts.decode(i) for i in ids] for word, ids in found.items() if ids}
            raise SpecError.of(
                field,
                missing,
                f"words that are one token of this tokenizer; found: {shorten(known or None)}",
            )
        return tuple(ids if forms == "bare" else dict.fromkeys(ids))

    def _forms(self, texts: Texts, words: Sequence[str], forms: str) -> dict[str, list[int]]:
        spelled = [
            (word, text)
            for word in dict.fromkeys(words)
            for text in _spellings(word, forms)
            # Only a text that some token has can be one token.
            if text.strip() in texts.stripped
        ]
        found: dict[str, list[int]] = {word: [] for word in words}
        for (word, text), ids in zip(spelled, texts.encode([text for _, text in spelled])):
            # Some tokenizers put the break into a token of its own.
            last = ids[-1:] if text.startswith("\n") else ids
            if len(last) != 1 or last[0] >= self.vocab_size or last[0] in found[word]:
                continue
            written = texts.decode(last[0])
            if written == text or (forms != "bare" and written.strip() == text.strip()):
                found[word].append(last[0])
        return found

    def _ids(self, flags: "Flags") -> Ids:
        return tuple(flags[: self.vocab_size].nonzero()[0].tolist())


def _spellings(word: str, forms: str) -> list[str]:
    if forms == "bare":
        return [word]
    cases = dict.fromkeys((word, word[:1].upper() + word[1:], word.lower()))
    return [before + case for before in ("", " ", "\n") for case in cases]


def _size_of(key: object) -> int:
    """Roughly the bytes of a key."""
    if isinstance(key, str):
        return 60 + 4 * len(key)
    return 60 + sum(map(_size_of, key)) if isinstance(key, tuple) else 40
