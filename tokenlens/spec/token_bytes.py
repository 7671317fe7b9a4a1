"""The bytes that each token of a tokenizer writes, wherever it stands in a text.

A token's text alone is not enough: half a character decodes to a replacement sign, and some
tokenizers take a blank off the front of what they decode. Knows no tokenizer library: how pieces
are spelled is guessed from a few conventions, and a guess counts only if ``decode`` agrees with it.
"""

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

CHECKED = 1024
"""Tokens on which a spelling must agree with ``decode``; those on which spellings differ first."""

_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_letters() -> dict[str, int]:
    """GPT-2's letters for bytes: printable ones are themselves, the others follow from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {chr(byte): byte for byte in printable}
    return letters | {chr(0x100 + index): byte for index, byte in enumerate(others)}


_LETTERS = _byte_letters()


def _byte_level(piece: str) -> bytes:
    try:
        return bytes([_LETTERS[letter] for letter in piece])
    except KeyError:  # an added token, which stands as it is
        return piece.encode("utf-8", "replace")


def _sentence_piece(piece: str) -> bytes:
    fallback = _FALLBACK.fullmatch(piece)
    if fallback is not None:
        return bytes([int(fallback[1], 16)])
    return piece.replace("\u2581", " ").encode("utf-8", "replace")


def _as_written(piece: str) -> bytes:
    return piece.encode("utf-8", "replace")


SPELLINGS: tuple[Callable[[str], bytes], ...] = (_byte_level, _sentence_piece, _as_written)
"""How pieces stand for bytes, in the order in which they are tried."""


def token_bytes(tokenizer: Any, vocab_size: int) -> list[bytes]:
    """What each token adds to a text, as bytes.

    Parameters
    ----------
    tokenizer
        Anything with ``decode``, and ``encode`` and ``get_vocab`` if it has them.
    vocab_size
        Ids that are asked for.

    Returns
    -------
    list of bytes
        ``vocab_size`` of them: ``b""`` for an id without a token, a special token's literal text.
        A blank in front of a word is there, also where ``decode`` of the token alone leaves it
        away. Where nothing but ``decode`` is known, a part of a character is a replacement sign.
    """
    known = [i for i in sorted(token_ids(tokenizer, vocab_size)) if i < vocab_size]
    table = [b""] * vocab_size
    pieces = _pieces(tokenizer, known)
    if pieces is None:
        written = _Context(tokenizer)
        for token in known:
            # Nobody has said that each of these ids is a token.
            with suppress(LookupError, ValueError, OverflowError):
                table[token] = written(token).encode("utf-8", "replace")
        return table
    special = set(getattr(tokenizer, "all_special_ids", ()))
    readings = [_read(pieces, spelling) for spelling in SPELLINGS]
    found = _agreeing(tokenizer, known, readings, special)
    if found is None:
        written = _Context(tokenizer)
        found = [
            # Some decoders leave special tokens out.
            (written(token) or _text_of(piece)).encode("utf-8", "replace")
            for token, piece in zip(known, pieces)
        ]
    for token, content in zip(known, found):
        table[token] = content
    return table


def token_ids(tokenizer: Any, limit: int) -> set[int]:
    """The ids that are tokens; all below ``limit`` where the tokenizer does not say."""
    if hasattr(tokenizer, "get_vocab"):
        return {int(token) for token in tokenizer.get_vocab().values()}
    return set(range(limit))


def _pieces(tokenizer: Any, known: Sequence[int]) -> list[str | bytes] | None:
    """The tokenizer's own spelling of tokens, ``None`` if it tells none."""
    if hasattr(tokenizer, "convert_ids_to_tokens"):
        pieces = list(tokenizer.convert_ids_to_tokens(list(known)))
    elif hasattr(tokenizer, "get_vocab"):
        spelled = {int(token): piece for piece, token in tokenizer.get_vocab().items()}
        pieces = [spelled[token] for token in known]
    else:
        return None
    usable = len(pieces) == len(known) and all(isinstance(p, (str, bytes)) for p in pieces)
    return pieces if usable else None


def _text_of(piece: str | bytes) -> str:
    return piece.decode("utf-8", "replace") if isinstance(piece, bytes) else piece


def _read(pieces: Sequence[str | bytes], spelling: Callable[[str], bytes]) -> list[bytes]:
    # A piece that is given as bytes needs no reading.
    return [piece if isinstance(piece, bytes) else spelling(piece) for piece in pieces]


def _agreeing(
    tokenizer: Any, known: Sequence[int], readings: Sequence[list[bytes]], special: set[int]
) -> list[bytes] | None:
    """The first reading that ``decode`` agrees with on a sample of the tokens."""
    # A special token's text may be left out by `decode`.
    open_ = [place for place, token in enumerate(known) if token not in special]
    told = [p for p in open_ if any(r[p] != readings[0][p] for r in readings[1:])]
    sample = dict.fromkeys((*_spread(told, CHECKED), *_spread(open_, CHECKED // 4)))
    written = _Context(tokenizer)
    texts = {place: written(known[place]) for place in sample}
    for reading in readings:
        if all(reading[p].decode("utf-8", "replace") == text for p, text in texts.items()):
            return reading
    return None


def _spread(places: Sequence[int], limit: int) -> Sequence[int]:
    """At most ``limit`` of them, evenly spread."""
    return places if len(places) <= limit else places[:: -(-len(places) // limit)]


class _Context:
    """The text that a token adds behind another one, as ``decode`` writes it."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        anchor = tokenizer.encode("a", add_special_tokens=False)[-1:]
        self._anchor = [int(token) for token in anchor]
        self._before = self._decode(self._anchor) if self._anchor else ""

    def __call__(self, token: int) -> str:
        text = self._decode([*self._anchor, token])
        if self._before and text.startswith(self._before):
            return text[len(self._before) :]
        return self._decode([token])

    def _decode(self, ids: list[int]) -> str:
        try:
            # The clean-up takes blanks away in front of punctuation.
            return str(
                self._tokenizer.decode(
                    ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
                )
            )
        except TypeError:
            return str(self._tokenizer.decode(ids))
