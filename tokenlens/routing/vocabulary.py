"""A model's tokenizer as routing needs it: step boundaries, end markers, text of ids.

Knows no model and no policy. A step ends with the token that completes the delimiter, whichever of
the vocabulary's many entries that is (564 entries of Qwen's end in a blank line), or two of them.
"""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tokenlens.errors import SpecError
from tokenlens.routing.settings import RoutingSpec
from tokenlens.spec import encode_text
from tokenlens.spec.markers import Marker, marker_of
from tokenlens.spec.texts import texts_of

End = Literal["boundary", "think_end", "eos"]

PROBES = ("Wait, 3*4=12.\n\nSo x\n\n", "</think>\n\nAnswer: \\boxed{7}", " a\n\nb\n c \u00e9\u4e2d")
"""Texts on which tokenizers of one vocabulary must agree to count as the same."""


class RouterVocabulary:
    """One tokenizer, with what is resolved from it once.

    Parameters
    ----------
    tokenizer
        A Hugging Face tokenizer.
    eos_ids
        Tokens that end a text; the tokenizer's own if empty.
    """

    def __init__(self, tokenizer: Any, eos_ids: Iterable[int] = ()) -> None:
        self.tokenizer = tokenizer
        own = getattr(tokenizer, "eos_token_id", None)
        self.eos_ids = frozenset(int(i) for i in eos_ids) or frozenset(
            () if own is None else (int(own),)
        )
        size = texts_of(tokenizer, len(tokenizer)).size
        self.pieces: list[str] = tokenizer.batch_decode(
            [[i] for i in range(size)],
            skip_special_tokens=False,
            clean_up_tokenization_spaces=False,
        )

    def piece(self, token: int) -> str:
        """The text of one token; nothing for ids that are padding of the model's output layer."""
        return self.pieces[token] if token < len(self.pieces) else ""

    def content(self, token: int) -> bytes:
        """The bytes of one token; nothing for ids that are none."""
        contents = texts_of(self.tokenizer, len(self.pieces)).contents
        return contents[token] if token < len(contents) else b""

    def encode(self, text: str) -> list[int]:
        """Ids of a text as it stands."""
        return [int(i) for i in self.tokenizer.encode(text, add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens included."""
        return str(
            self.tokenizer.decode(
                list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
        )

    def boundary_ids(self, delimiter: str) -> tuple[int, ...]:
        """Every token that holds the delimiter."""
        return tuple(i for i, piece in enumerate(self.pieces) if delimiter in piece)

    def chat(self, messages: Sequence[Any], **template: Any) -> list[int]:
        """The prompt of a conversation, as ids.

        Raises
        ------
        SpecError
            The tokenizer has no chat template.
        """
        if not getattr(self.tokenizer, "chat_template", None):
            raise SpecError.of("tokenizer", "one without a chat template", "one that has one")
        ids = self.tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=True, tokenize=True, return_dict=False, **template
        )
        return [int(i) for i in ids]

    def user_turn(self, question: str) -> str:
        """What the template puts behind an unfinished answer to have a user ask something."""
        if not getattr(self.tokenizer, "chat_template", None):
            return f"\n\n{question}\n"
        mark = "\u2042"
        text = self.tokenizer.apply_chat_template(
            [
                {"role": "user", "content": "x"},
                {"role": "assistant", "content": mark},
                {"role": "user", "content": question},
            ],
            add_generation_prompt=True,
            tokenize=False,
        )
        return str(text).rpartition(mark)[2]


def same_vocabulary(first: RouterVocabulary, second: RouterVocabulary) -> bool:
    """Whether a token id means the same to both, so that ids can be handed over."""
    if first.tokenizer is second.tokenizer:
        return True
    return (
        first.pieces == second.pieces
        and first.tokenizer.get_vocab() == second.tokenizer.get_vocab()
        and all(first.encode(text) == second.encode(text) for text in PROBES)
    )


@dataclass(frozen=True)
class StepEnds:
    """Where a step ends, as text and, with a vocabulary, as ids."""

    delimiter: str
    think_end: str | None
    vocabulary: RouterVocabulary | None = None
    # the end marker: a token of its own, or a text that tokens may be merged around
    marker: Marker | None = None

    @classmethod
    def of(cls, spec: RoutingSpec, vocabulary: RouterVocabulary | None) -> "StepEnds":
        """Resolve a spec's delimiter and end marker.

        Raises
        ------
        SpecError
            The tokenizer cannot write one of them.
        """
        if vocabulary is None:
            return cls(spec.delimiter, spec.think_end)
        if not vocabulary.boundary_ids(spec.delimiter):
            encode_text(vocabulary.tokenizer, spec.delimiter, "delimiter")
        marker = None
        if spec.think_end is not None:
            marker = marker_of(
                vocabulary.tokenizer, spec.think_end, default=spec.think_end, field="think_end"
            )
            if marker.text is not None:
                # Made now: the event loop must not wait for it.
                vocabulary.content(0)
        return cls(spec.delimiter, spec.think_end, vocabulary, marker)

    @property
    def texts(self) -> tuple[str, ...]:
        """What an engine is asked to stop at."""
        return (self.delimiter, *([self.think_end] if self.think_end else []))

    def cut_text(self, text: str) -> tuple[str, End | None]:
        """The text up to and with the first end in it."""
        found: list[tuple[int, End]] = []
        names: tuple[End, ...] = ("boundary", "think_end")
        for name, mark in zip(names, self.texts):
            if (at := text.find(mark)) >= 0:
                found.append((at + len(mark), name))
        if not found:
            return text, None
        stop, end = min(found)
        return text[:stop], end


class Matcher:
    """Finds the end of one step in a stream of ids; without ``ends`` only the end of the text."""

    def __init__(self, ends: StepEnds | None, vocabulary: RouterVocabulary) -> None:
        self._vocabulary = vocabulary
        self._delimiter = ends.delimiter if ends is not None else ""
        marker = ends.marker if ends is not None else None
        self._alone = marker.ids[0] if marker is not None and marker.text is None else None
        self._marker = (marker.text or b"") if marker is not None else b""
        self._tail = ""
        self._bytes = b""

    def copy(self) -> "Matcher":
        """One that goes on from here by itself."""
        return copy.copy(self)

    def push(self, token: int) -> End | None:
        """Take a token in, and say whether it ends the step."""
        if token in self._vocabulary.eos_ids:
            return "eos"
        if token == self._alone:
            return "think_end"
        if self._marker:
            self._bytes += self._vocabulary.content(token)
            if self._marker in self._bytes:
                return "think_end"
            self._bytes = self._bytes[max(0, len(self._bytes) - len(self._marker) + 1) :]
        if self._delimiter:
            text = self._tail + self._vocabulary.piece(token)
            if self._delimiter in text:
                return "boundary"
            self._remember(text)
        return None

    def read(self, text: str) -> None:
        """Take in what the other model wrote, which did not end the step."""
        if self._marker:
            written = self._bytes + text.encode("utf-8", "replace")
            self._bytes = written[max(0, len(written) - len(self._marker) + 1) :]
        if self._delimiter:
            self._remember(self._tail + text)

    def _remember(self, text: str) -> None:
        self._tail = text[len(text) - len(self._delimiter) + 1 :]


class TextStream:
    """Text of ids that arrive one by one; holds back a character that is not whole yet."""

    def __init__(self, vocabulary: RouterVocabulary) -> None:
        self._vocabulary = vocabulary
        self._before: list[int] = []
        self._open: list[int] = []

    def push(self, ids: Sequence[int]) -> str:
        """New text; empty while the last character is incomplete."""
        self._open += ids
        known = self._vocabulary.decode(self._before)
        text = self._vocabulary.decode(self._before + self._open)
        # A byte-level token may stop inside a character; four tokens are the longest one.
        if text.endswith("\ufffd") and len(self._open) < 8:
            return ""
        self._before, self._open = self._open, []
        return text[len(known) :]

    def flush(self) -> str:
        """What was held back, at the end."""
        if not self._open:
            return ""
        known = self._vocabulary.decode(self._before)
        text = self._vocabulary.decode(self._before + self._open)
        self._before, self._open = self._open, []
        return text[len(known) :]
