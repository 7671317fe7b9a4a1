"""What one request has written so far, as each of its two models reads it.

With one vocabulary, ids are handed over. With two, or none, text is: a model keeps the ids that it
wrote itself, reads the other's text through its own tokenizer once, and the trace says how.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from tokenlens.routing.backend import Context, Draft
from tokenlens.routing.settings import ROLES, Role
from tokenlens.routing.trace import Handover, Reading
from tokenlens.routing.vocabulary import RouterVocabulary, TextStream


@dataclass(frozen=True)
class Segment:
    """Tokens in a row by one writer (``None``: the router's own text)."""

    writer: Role | None
    ids: tuple[int, ...]
    text: str
    tokens: int


@dataclass
class _View:
    """The text as one model reads it."""

    prompt: Context
    ids: list[int] = field(default_factory=list)
    # segments that are in `ids`
    read: int = 0


class Transcript:
    """One request's text.

    Parameters
    ----------
    prompts
        The prompt as each model reads it.
    vocabularies
        ``None`` where the router does not have a model's tokenizer.
    emit
        Is given text as soon as it is certain.
    watch
        Is given ids in the same way.
    """

    def __init__(
        self,
        prompts: Mapping[Role, Context],
        vocabularies: Mapping[Role, RouterVocabulary | None],
        handover: Handover,
        emit: Callable[[str], None] | None = None,
        watch: Callable[[tuple[int, ...]], None] | None = None,
    ) -> None:
        self._watch = watch
        self.segments: list[Segment] = []
        self.text = ""
        self.tokens = 0
        self._views = {role: _View(prompts[role]) for role in ROLES}
        self._vocabularies = vocabularies
        self._handover = handover
        self._emit = emit
        self._stream: tuple[RouterVocabulary, TextStream] | None = None

    @property
    def ids(self) -> list[int]:
        """Ids of everything written, each by its writer's tokenizer."""
        return [token for segment in self.segments for token in segment.ids]

    def vocabulary(self, role: Role) -> RouterVocabulary | None:
        """A model's tokenizer."""
        return self._vocabularies[role]

    def context(self, role: Role) -> tuple[Context, list[Reading]]:
        """Everything so far as a model reads it, and what it had to read as text just now."""
        view, vocabulary = self._views[role], self._vocabularies[role]
        if vocabulary is None or isinstance(view.prompt, str):
            prompt = view.prompt
            assert isinstance(prompt, str)
            return prompt + self._plain(self.segments), []
        readings: list[Reading] = []
        run: list[Segment] = []
        for segment in self.segments[view.read :]:
            if self._handover == "ids" or segment.writer == role:
                view.ids += self._reread(role, vocabulary, run, readings)
                view.ids += segment.ids
                run = []
            else:
                run.append(segment)
        view.ids += self._reread(role, vocabulary, run, readings)
        view.read = len(self.segments)
        return (*view.prompt, *view.ids), readings

    def read(self, role: Role, draft: Draft) -> list[int]:
        """A draft's ids as a model reads them; empty where the router has no tokenizer for it."""
        vocabulary = self._vocabularies[role]
        if self._handover == "ids" or role == draft.role or vocabulary is None:
            return draft.ids
        return vocabulary.encode(self.text_of(draft))

    def text_of(self, draft: Draft) -> str:
        """A draft's text, without the end-of-text token."""
        vocabulary = self._vocabularies[draft.role]
        if vocabulary is None or not draft.ids:
            return draft.text
        return vocabulary.decode([i for i in draft.ids if i not in vocabulary.eos_ids])

    def asked(self, role: Role, draft: Draft, question: str, prefix: str) -> Context:
        """The context behind which a model answers a question about a draft."""
        context, _ = self.context(role)
        vocabulary = self._vocabularies[role]
        if isinstance(context, str) or vocabulary is None:
            return f"{context}{self.text_of(draft)}\n\n{question}\n{prefix}"
        tail = vocabulary.user_turn(question) + prefix
        return (*context, *self.read(role, draft), *vocabulary.encode(tail))

    def write(self, writer: Role, ids: Sequence[int], text: str, tokens: int) -> str:
        """Append what a model wrote; returns the text that became certain."""
        vocabulary = self._vocabularies[writer]
        new = text
        if vocabulary is not None and ids:
            new = ""
            if self._stream is None or self._stream[0] is not vocabulary:
                new = self._flush()
                self._stream = vocabulary, TextStream(vocabulary)
            new += self._stream[1].push([i for i in ids if i not in vocabulary.eos_ids])
        self.segments.append(Segment(writer, tuple(ids), text, tokens))
        if self._watch is not None:
            self._watch(tuple(ids))
        return self._out(new, tokens)

    def insert(self, text: str) -> tuple[int, str]:
        """Append a text of the router's own; returns its tokens and the certain text."""
        vocabulary = self._vocabularies["small"] or self._vocabularies["large"]
        ids = vocabulary.encode(text) if vocabulary is not None else []
        tokens = len(ids) or 1
        new = self._flush() + text
        if self._watch is not None:
            self._watch(tuple(ids))
        self.segments.append(
            Segment(None, tuple(ids) if self._handover == "ids" else (), text, tokens)
        )
        return tokens, self._out(new, tokens)

    def flush(self) -> str:
        """Give out what was held back, at the end."""
        return self._out(self._flush(), 0)

    def _flush(self) -> str:
        held = self._stream[1].flush() if self._stream is not None else ""
        self._stream = None
        return held

    def _out(self, text: str, tokens: int) -> str:
        self.text += text
        self.tokens += tokens
        if text and self._emit is not None:
            self._emit(text)
        return text

    def _reread(
        self, role: Role, vocabulary: RouterVocabulary, run: list[Segment], readings: list[Reading]
    ) -> list[int]:
        if not run:
            return []
        text = self._plain(run)
        ids = vocabulary.encode(text)
        readings.append(
            Reading(
                reader=role,
                written_tokens=sum(segment.tokens for segment in run),
                read_tokens=len(ids),
                exact=vocabulary.decode(ids) == text,
            )
        )
        return ids

    def _plain(self, run: Sequence[Segment]) -> str:
        """Text of segments: of the ids of one writer together, so that characters are whole."""
        parts: list[str] = []
        ids: list[int] = []
        vocabulary: RouterVocabulary | None = None
        for segment in run:
            own = self._vocabularies[segment.writer] if segment.writer and segment.ids else None
            if own is not vocabulary and vocabulary is not None:
                parts.append(vocabulary.decode(ids))
                ids = []
            vocabulary = own
            if own is not None:
                ids += [i for i in segment.ids if i not in own.eos_ids]
            else:
                parts.append(segment.text)
        if vocabulary is not None:
            parts.append(vocabulary.decode(ids))
        return "".join(parts)
