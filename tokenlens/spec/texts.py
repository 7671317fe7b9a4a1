"""What a tokenizer's tokens are: how many, their texts, and an index of the texts.

Made once for each tokenizer, on first use or when a server starts. Knows no tokenizer library.
"""

import threading
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from tokenlens.spec.bounded import Bounded
from tokenlens.spec.token_bytes import token_bytes, token_ids

if TYPE_CHECKING:
    from tokenlens.spec.text_index import TextIndex

MAX_KEPT = 256
MAX_KEPT_BYTES = 4 << 20
"""Sets of tokens that are kept of one tokenizer: requests repeat theirs."""

_LOCK = threading.RLock()

Made = TypeVar("Made")


def _once(make: "Callable[[Texts], Made]") -> Made:
    """A property that is made on first use, also where several threads ask at once."""

    def get(self: "Texts") -> Made:
        made = self.made
        if make.__name__ not in made:
            with _LOCK:
                if make.__name__ not in made:
                    made[make.__name__] = make(self)
        return made[make.__name__]  # type: ignore[no-any-return]

    return property(get, doc=make.__doc__)  # type: ignore[return-value]


class Texts:
    """The tokens of one tokenizer.

    Parameters
    ----------
    tokenizer
        Anything with ``encode`` and ``decode``; with ``get_vocab`` its ids are known.
    limit
        Ids that there may be where the tokenizer does not say.

    Attributes
    ----------
    made
        What has been made of it so far.
    views
        Vocabularies by their size.
    kept
        Sets of tokens that requests have asked for.
    """

    def __init__(self, tokenizer: Any, limit: int) -> None:
        self.tokenizer, self._limit = tokenizer, limit
        self.made: dict[str, Any] = {}
        self.views: dict[int, object] = {}
        self.kept: Bounded[tuple[int, ...]] = Bounded(MAX_KEPT, MAX_KEPT_BYTES)

    @_once
    def ids(self) -> frozenset[int]:
        """The ids that are tokens."""
        return frozenset(token_ids(self.tokenizer, self._limit))

    @_once
    def size(self) -> int:
        """Ids up to the largest one, those without a token among them."""
        return 1 + max(self.ids, default=-1)

    @_once
    def missing(self) -> tuple[int, ...]:
        """Ids below the size that are no token."""
        return tuple(i for i in range(self.size) if i not in self.ids)

    @_once
    def contents(self) -> list[bytes]:
        """The bytes of every token, ``b""`` for ids without one."""
        return token_bytes(self.tokenizer, self.size)

    @_once
    def texts(self) -> list[str]:
        """The text of every token, as it stands inside of a longer one."""
        return [content.decode("utf-8", "replace") for content in self.contents]

    @_once
    def index(self) -> "TextIndex":
        """Where words stand in the texts."""
        # Specs can be written where no numpy is installed.
        from tokenlens.spec.text_index import TextIndex

        return TextIndex(self.texts)

    @_once
    def stripped(self) -> frozenset[str]:
        """The texts without blanks around them."""
        return frozenset(map(str.strip, self.texts))

    def prepare(self) -> "Texts":
        """Make all of it now: a server does so before it takes requests."""
        _ = self.index, self.stripped
        return self

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of texts, in one call where the tokenizer can."""
        if not texts:
            return []
        found = self._encoded_at_once(texts)
        if found is None:
            found = [self.tokenizer.encode(text, add_special_tokens=False) for text in texts]
        return [[int(token) for token in ids] for ids in found]

    def _encoded_at_once(self, texts: Sequence[str]) -> list[Sequence[int]] | None:
        """All of them, ``None`` where the tokenizer takes one text only, or has ids of its own."""
        if not callable(self.tokenizer):
            return None
        found = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        if len(found) != len(texts) or not all(isinstance(ids, Sequence) for ids in found):
            return None
        return list(found)

    def decode(self, token: int) -> str:
        """What the tokenizer writes for a token alone."""
        return str(self.tokenizer.decode([token]))


_KEPT: "weakref.WeakKeyDictionary[Any, tuple[int, Texts]]" = weakref.WeakKeyDictionary()


def texts_of(tokenizer: Any, limit: int) -> Texts:
    """The tokens of a tokenizer, remembered for as long as it lives and has as many of them."""
    count = len(tokenizer) if hasattr(tokenizer, "__len__") else limit
    with _LOCK:
        try:
            known = _KEPT.get(tokenizer)
            if known is None or known[0] != count:
                # What is kept must not keep its own key alive.
                known = _KEPT[tokenizer] = count, Texts(weakref.proxy(tokenizer), count)
        except TypeError:  # not hashable, or without weak references
            return Texts(tokenizer, count)
        return known[1]


def vocabulary_size(tokenizer: Any, width: int) -> int:
    """Ids that can be tokens of a model: up to the tokenizer's largest, within the logits.

    Parameters
    ----------
    tokenizer
        ``None`` where there is none.
    width
        Columns of the model's logits.
    """
    return width if tokenizer is None else min(width, texts_of(tokenizer, width).size)


def holes(tokenizer: Any, width: int) -> tuple[int, ...]:
    """Ids below :func:`vocabulary_size` that are no token."""
    if tokenizer is None:
        return ()
    return tuple(i for i in texts_of(tokenizer, width).missing if i < width)
