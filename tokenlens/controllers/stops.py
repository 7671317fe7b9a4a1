"""Where a call ends: tokens, texts and the end marker, looked for on the way. Knows no backend."""

from dataclasses import dataclass, field
from typing import Literal

from tokenlens.routing.vocabulary import Matcher, RouterVocabulary, StepEnds

Why = Literal["think_end", "eos", "stop"]


@dataclass(frozen=True)
class ControllerStop:
    """What ends a call beside the end of the text.

    Attributes
    ----------
    ids
        Tokens.
    texts
        Texts; a call ends with the token that completes one.
    ends
        The end marker of the thinking, if it ends the call.
    """

    ids: frozenset[int] = frozenset()
    texts: tuple[str, ...] = ()
    ends: StepEnds | None = None

    def watch(self, vocabulary: RouterVocabulary | None) -> "Watcher":
        """Follow one call."""
        return Watcher(self, vocabulary)


@dataclass
class Watcher:
    """One call's ids or text, as they come."""

    stop: ControllerStop
    vocabulary: RouterVocabulary | None
    text: str = ""
    _marker: Matcher | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if self.vocabulary is not None:
            self._marker = Matcher(self.stop.ends, self.vocabulary)
        self._longest = max((len(text) for text in self.stop.texts), default=0)

    def copy(self) -> "Watcher":
        """One that begins anew."""
        return Watcher(self.stop, self.vocabulary)

    def push(self, token: int) -> Why | None:
        """Take a token in, and say whether it ends the call."""
        assert self._marker is not None
        assert self.vocabulary is not None
        end = self._marker.push(token)
        if end in ("eos", "think_end"):
            return end
        if token in self.stop.ids:
            return "stop"
        if self.stop.texts:
            self.text = (self.text + self.vocabulary.piece(token))[-(self._longest + 256) :]
            if any(text in self.text for text in self.stop.texts):
                return "stop"
        return None

    def read(self, text: str) -> tuple[str, Why | None]:
        """The same for text: what of it belongs to the call, and whether it ends there."""
        before, whole = len(self.text), self.text + text
        found: list[tuple[int, Why]] = []
        marks = [(mark, "stop") for mark in self.stop.texts]
        if self.stop.ends is not None and self.stop.ends.think_end:
            marks.append((self.stop.ends.think_end, "think_end"))
        for mark, why in marks:
            at = whole.find(mark, max(0, before - len(mark) + 1))
            if at >= 0:
                found.append((at + len(mark), why))  # type: ignore[arg-type]
        if not found:
            self.text = whole
            return text, None
        end, why = min(found)
        self.text = whole[:end]
        return whole[before:end], why
