"""Think markers and forced texts as token ids, through the request's own tokenizer.

Knows no tokenizer library: anything with ``encode`` and ``decode`` will do.
"""

from collections.abc import Sequence
from typing import Any, Protocol

from tokenlens.spec.decoding import MAX_MARKER_TOKENS
from tokenlens.spec.errors import SpecError, shorten

MAX_SPELLINGS = 4
"""The most token sequences that are watched for one marker."""

# A marker of several tokens may be merged with what stands beside it ("think>" + "\n"), so it is
# looked for in these surroundings too.
SURROUNDINGS = (("", ""), ("\n", ""), ("\n\n", ""), ("", "\n"), ("", "\n\n"), ("a", ""), ("", "a"))


class Tokenizer(Protocol):
    """What tokenlens needs of a tokenizer; every Hugging Face tokenizer has it."""

    def encode(self, text: str, *, add_special_tokens: bool = ...) -> list[int]: ...

    def decode(self, ids: Sequence[int], **kwargs: Any) -> str: ...


def encode_text(tokenizer: Tokenizer, text: str, field: str) -> list[int]:
    """Token ids of ``text``, or an error that names the field if the tokenizer cannot write it."""
    ids = [int(i) for i in tokenizer.encode(text, add_special_tokens=False)]
    written = tokenizer.decode(ids) if ids else ""
    if not ids or _squeeze(written) != _squeeze(text):
        raise SpecError.of(
            field,
            text,
            f"a text that this tokenizer can write; it would write {shorten(written)}",
        )
    return ids


def resolve_marker(
    tokenizer: Tokenizer | None,
    marker: str | Sequence[int] | None,
    *,
    default: str,
    field: str,
) -> list[list[int]]:
    """Every token sequence that stands for a marker, the canonical one first.

    Parameters
    ----------
    marker
        Text, ids, or ``None`` for ``default``, which then must be a token of its own.
    field
        The spec's field, for errors.

    Returns
    -------
    list of list of int
        At most :data:`MAX_SPELLINGS` sequences of at most ``MAX_MARKER_TOKENS`` ids.

    Raises
    ------
    SpecError
        No tokenizer for a text, or a tokenizer that cannot write it.
    """
    if marker is not None and not isinstance(marker, str):
        return [[int(i) for i in marker]]
    text = default if marker is None else marker
    if tokenizer is None:
        raise SpecError.of(field, text, "token ids, because no tokenizer was given")
    ids = encode_text(tokenizer, text, field)
    if marker is None and len(ids) != 1:
        pieces = [tokenizer.decode([i]) for i in ids]
        raise SpecError.of(
            field,
            None,
            f"the marker that this model writes: {default!r} is not a token of this tokenizer"
            f" (it takes {len(ids)}: {pieces}). Name the model's own marker, or give {default!r}"
            " explicitly if the model was trained to write it so",
        )
    if len(ids) > MAX_MARKER_TOKENS:
        raise SpecError.of(
            field,
            text,
            f"a marker of at most {MAX_MARKER_TOKENS} tokens (this one takes {len(ids)})",
        )
    if len(ids) == 1:
        return [ids]
    spellings = [ids]
    for before, after in SURROUNDINGS:
        spelling = _spelling_within(tokenizer, before, text, after)
        if spelling and spelling not in spellings and len(spelling) <= MAX_MARKER_TOKENS:
            spellings.append(spelling)
    return spellings[:MAX_SPELLINGS]


def _spelling_within(tokenizer: Tokenizer, before: str, text: str, after: str) -> list[int] | None:
    """The shortest run of tokens that covers ``text`` between ``before`` and ``after``."""
    ids = [int(i) for i in tokenizer.encode(before + text + after, add_special_tokens=False)]
    for length in range(1, len(ids) + 1):
        for start in range(len(ids) - length + 1):
            if text in tokenizer.decode(ids[start : start + length]):
                return ids[start : start + length]
    return None


def _squeeze(text: str) -> str:
    """Without blanks: some tokenizers add one at the front or around special tokens."""
    return "".join(text.split())
