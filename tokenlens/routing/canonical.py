"""Whether ids are what their own text's encoding is ("Say Anything but This").

A model takes two id sequences of one text for two texts, so what is spliced, probed and handed over
here is ids. A check and no mask: a text that is not canonical is not wrong.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Literal

from tokenlens.routing.vocabulary import RouterVocabulary

MAX_IDS = 1 << 16
"""Ids whose differing stretches are looked for; longer texts get a verdict alone."""

Kind = Literal["blank", "split", "merge", "other"]


@dataclass(frozen=True)
class Stretch:
    """Where ids and the encoding of their text differ.

    Attributes
    ----------
    start, end
        Of the ids.
    ids, own
        What stands there, and what the text's own encoding has.
    kind
        ``blank``: a blank sits at another token's edge; ``split``: more tokens than the encoding
        has; ``merge``: fewer; ``other``.
    """

    start: int
    end: int
    ids: tuple[int, ...]
    own: tuple[int, ...]
    kind: Kind


def encoded(vocabulary: RouterVocabulary, ids: Sequence[int]) -> list[int]:
    """The encoding of the text of ids; what ends the text stays as it is."""
    found: list[int] = []
    part: list[int] = []
    for token in (*ids, None):
        if token is not None and token not in vocabulary.eos_ids:
            part.append(token)
            continue
        if part:
            found += vocabulary.encode(vocabulary.decode(part))
        found += [] if token is None else [token]
        part = []
    return found


def is_canonical(vocabulary: RouterVocabulary, ids: Sequence[int]) -> bool:
    """Whether the encoding of their text is these ids."""
    return encoded(vocabulary, ids) == list(ids)


def stretches(vocabulary: RouterVocabulary, ids: Sequence[int]) -> list[Stretch]:
    """Where they differ, in order."""
    own = encoded(vocabulary, ids)
    if own == list(ids) or max(len(own), len(ids)) > MAX_IDS:
        return []
    found = []
    matcher = SequenceMatcher(None, list(ids), own, autojunk=False)
    for tag, start, end, first, last in matcher.get_opcodes():
        if tag == "equal":
            continue
        a, b = tuple(ids[start:end]), tuple(own[first:last])
        found.append(Stretch(start, end, a, b, _kind(vocabulary, a, b)))
    return found


def _kind(vocabulary: RouterVocabulary, a: Sequence[int], b: Sequence[int]) -> Kind:
    words = [[vocabulary.piece(i) for i in part] for part in (a, b)]
    if "".join(words[0]) == "".join(words[1]):
        if [word.strip() for word in words[0] if word.strip()] == [
            word.strip() for word in words[1] if word.strip()
        ]:
            return "blank"
        return "split" if len(a) > len(b) else "merge" if len(a) < len(b) else "other"
    return "other"
