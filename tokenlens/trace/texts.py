"""Texts of steps and of tokens: a character may take several tokens, and a token half a character.

Knows a tokenizer by its ``decode`` and what ``tokenlens.spec.token_bytes`` knows.
"""

import codecs
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from tokenlens.spec.token_bytes import token_bytes, token_ids

HALF = "\ufffd"
"""What half a character decodes to."""
MAX_WAITING = 16
"""Tokens that are waited for until a character is whole; what takes more is none."""


class StepTexts:
    """The text that each step adds: put together they are the text of all tokens.

    A step that ends within a character adds nothing; the step that completes it adds it.

    Parameters
    ----------
    decode
        The text of tokens that follow each other.
    """

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        # Tokens that were told are kept as long as the next ones' text depends on them (blanks).
        self._ids: list[int] = []
        self._told, self._said = 0, ""

    def add(self, token: int) -> str:
        """The text that a token adds."""
        self._ids.append(token)
        text = self._decode(self._ids)
        if text.endswith(HALF) and len(self._ids) - self._told <= MAX_WAITING:
            return ""
        new = text[len(self._said) :]
        self._ids = self._ids[self._told :]
        self._told, self._said = len(self._ids), self._decode(self._ids)
        return new

    def rest(self) -> str:
        """What the tokens say that wait for more, when no more come."""
        return self._decode(self._ids)[len(self._said) :] if self._ids else ""


def step_texts(tokens: Sequence[int], tokenizer: Any) -> list[str]:
    """The text that each of a sequence's tokens adds."""
    growing = StepTexts(lambda ids: str(tokenizer.decode(ids)))
    found = [growing.add(token) for token in tokens]
    if found:
        found[-1] += growing.rest()
    return found


def token_text(tokenizer: Any, token: int) -> str:
    """A token's own text; bytes that are no character are shown as ``⟨F0⟩⟨9F⟩``."""
    text = str(tokenizer.decode([token]))
    if HALF not in text:
        return text
    table = _bytes(tokenizer)
    if token >= len(table) or not table[token]:
        return f"⟨{token}⟩"
    return table[token].decode("utf-8", "tokenlens_bytes")


_TABLES: "WeakKeyDictionary[Any, list[bytes]]" = WeakKeyDictionary()


def _bytes(tokenizer: Any) -> list[bytes]:
    """What each token writes; empty where only ``decode`` is known."""
    if not hasattr(tokenizer, "get_vocab"):
        return []
    try:
        if tokenizer not in _TABLES:
            _TABLES[tokenizer] = token_bytes(
                tokenizer, max(token_ids(tokenizer, 0), default=-1) + 1
            )
        return _TABLES[tokenizer]
    except TypeError:
        # Not every object can be a key.
        return token_bytes(tokenizer, max(token_ids(tokenizer, 0), default=-1) + 1)


def _show_bytes(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return "".join(f"⟨{b:02X}⟩" for b in error.object[error.start : error.end]), error.end


codecs.register_error("tokenlens_bytes", _show_bytes)
