"""Think markers and forced texts as token ids, through the request's own tokenizer.

Knows no tokenizer library: anything with ``encode`` and ``decode`` will do.
"""

import weakref
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from tokenlens.spec.errors import SpecError, shorten
from tokenlens.spec.phase import MAX_MARKER_TOKENS


class Marker(NamedTuple):
    """A think marker of one tokenizer.

    Attributes
    ----------
    ids
        Its tokens as they are written where it is forced.
    text
        What it is followed as; ``None`` where these very tokens are it: they were given, or it is
        a token that is no part of a longer one.
    """

    ids: tuple[int, ...]
    text: bytes | None = None


class Tokenizer(Protocol):
    """What tokenlens needs of a tokenizer; every Hugging Face tokenizer has it."""

    def encode(self, text: str, *, add_special_tokens: bool = ...) -> list[int]: ...

    def decode(self, ids: Sequence[int], **kwargs: Any) -> str: ...


def encode_text(tokenizer: Tokenizer, text: str, field: str) -> list[int]:
    """Token ids of ``text``, or an error that names the field if the tokenizer cannot write it."""
    ids, written = _encoded(tokenizer, text)
    if not ids or _squeeze(written) != _squeeze(text):
        raise SpecError.of(
            field,
            text,
            f"a text that this tokenizer can write; it would write {shorten(written)}",
        )
    return ids


def _encoded(tokenizer: Tokenizer, text: str) -> tuple[list[int], str]:
    """Token ids of ``text``, and what they are written as."""
    ids = [int(i) for i in tokenizer.encode(text, add_special_tokens=False)]
    return ids, tokenizer.decode(ids) if ids else ""


def marker_of(
    tokenizer: Tokenizer | None,
    marker: str | Sequence[int] | None,
    *,
    default: str,
    field: str,
) -> Marker:
    """A marker as tokens.

    Parameters
    ----------
    marker
        Text, ids, or ``None`` for ``default``, which then must be a token of its own.
    field
        The spec's field, for errors.

    Raises
    ------
    SpecError
        No tokenizer for a text, or a tokenizer that cannot write it.
    """
    if marker is not None and not isinstance(marker, str):
        return Marker(tuple(int(i) for i in marker))
    text = default if marker is None else marker
    if tokenizer is None:
        raise SpecError.of(field, text, "token ids, because no tokenizer was given")
    if marker is None:
        ids, written = _encoded(tokenizer, text)
        if len(ids) != 1 or _squeeze(written) != text:
            pieces = [tokenizer.decode([i]) for i in ids]
            raise SpecError.of(
                field,
                None,
                f"the marker that this model writes: {default!r} is not a token of this tokenizer"
                f" (it takes {len(ids)}: {pieces}), no other was found, and thinking would never"
                f" open. Name the model's own marker, give {default!r} explicitly if the model was"
                " trained to write it so, or say phase: none for a model that has no markers",
            )
    else:
        ids = encode_text(tokenizer, text, field)
    if len(ids) > MAX_MARKER_TOKENS:
        raise SpecError.of(
            field,
            text,
            f"a marker of at most {MAX_MARKER_TOKENS} tokens (this one takes {len(ids)})",
        )
    alone = len(ids) == 1 and stands_alone(tokenizer, ids[0])
    return Marker(tuple(ids), None if alone else text.encode("utf-8", "replace"))


def resolve_marker(
    tokenizer: Tokenizer | None,
    marker: str | Sequence[int] | None,
    *,
    default: str,
    field: str,
) -> list[list[int]]:
    """The tokens of :func:`marker_of`, as the only entry of a list."""
    return [list(marker_of(tokenizer, marker, default=default, field=field).ids)]


def stands_alone(tokenizer: Tokenizer, token: int) -> bool:
    """Whether a token is never part of a longer one, and its text never written otherwise."""
    size = getattr(tokenizer, "__len__", None)
    count = None if size is None else int(size())
    try:
        known = _ALONE.get(tokenizer)
        if known is None or known[0] != count:
            known = _ALONE[tokenizer] = count, _standing_alone(tokenizer)
    except TypeError:  # not hashable, or without weak references
        known = count, _standing_alone(tokenizer)
    return token in known[1]


# Libraries make their list of added tokens anew whenever they are asked.
_ALONE: "weakref.WeakKeyDictionary[Tokenizer, tuple[int | None, frozenset[int]]]" = (
    weakref.WeakKeyDictionary()
)


def _standing_alone(tokenizer: Tokenizer) -> frozenset[int]:
    added = getattr(tokenizer, "added_tokens_decoder", None)
    if isinstance(added, Mapping):
        # One that is a whole word only is written with other tokens inside a word.
        return frozenset(
            token for token, named in added.items() if not getattr(named, "single_word", False)
        )
    vocabulary: dict[str, int] = getattr(tokenizer, "get_added_vocab", dict)()
    return frozenset(vocabulary.values())


def _squeeze(text: str) -> str:
    """Without blanks: some tokenizers add one at the front or around special tokens."""
    return "".join(text.split())
