"""One line of text while it is written: what a method may do with it. Knows no method.

Nothing that a call wrote is part of the line before the method takes it.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any, Literal

from tokenlens.controllers.children import FAILURES
from tokenlens.controllers.desk import Desk, Model, Span, reseeded
from tokenlens.controllers.stops import ControllerStop
from tokenlens.controllers.tree import Kind, Mark
from tokenlens.errors import BackendError, LimitError, SpecError
from tokenlens.routing.backend import Context
from tokenlens.routing.facts import Fact, Trip
from tokenlens.routing.settings import Role, Sampling
from tokenlens.routing.vocabulary import TextStream
from tokenlens.spec import encode_text

NO_STOP = ControllerStop()
State = Literal["thinking", "closed", "eos", "full"]


@dataclass(frozen=True)
class Atom:
    """A token, or a piece of text of a server that gives no ids."""

    token: int | None
    text: str
    tokens: int
    mark: Mark
    injected: bool = False
    writer: Role | None = None
    # read by the model, and no part of the text that is returned
    hidden: bool = False
    # of the step that wrote it, where the call asked for facts
    fact: Fact | None = None


@dataclass
class Outlet:
    """Where text goes as soon as it is certain."""

    emit: Callable[[str], None] | None = None
    watch: Callable[[tuple[int, ...]], None] | None = None
    # whether text that is behind the line's end now may still change
    held: bool = False


class Page:
    """One line.

    Attributes
    ----------
    state
        ``thinking``; ``closed``: the end marker is written; ``eos``: the model has ended the text;
        ``full``: no token more may be written.
    why
        Why the thinking stopped, for the trace.
    """

    def __init__(
        self, desk: Desk, prompts: Mapping[Role, Context], *, session: str, sampling: Sampling,
        mark: Mark, max_tokens: int | None, thinks: bool = True, outlet: Outlet | None = None,
    ) -> None:  # fmt: skip
        self.desk, self.prompts, self.session = desk, prompts, session
        self.sampling, self.mark = sampling, mark
        self.atoms: list[Atom] = []
        self.state: State = "thinking" if thinks else "closed"
        self.why = ""
        self.answer_at: int | None = None if thinks else 0
        self.outlet = outlet or Outlet()
        self.fork_of: str | None = None
        # names of the branches that led here: seeds hang on it, and on no order of events
        self.path: tuple[object, ...] = ()
        self._max_tokens = max_tokens
        self._settled = 0
        self._stream: TextStream | None = None

    @property
    def model(self) -> Model:
        """Who writes."""
        return self.desk.models["large"]

    @property
    def ids(self) -> list[int]:
        """Everything written, as ids; empty where the server gives text."""
        return [atom.token for atom in self.atoms if atom.token is not None]

    @property
    def context(self) -> Context:
        """What the model has read before the next token."""
        prompt = self.prompts["large"]
        if isinstance(prompt, str):
            return prompt + "".join(atom.text for atom in self.atoms)
        return (*prompt, *self.ids)

    @property
    def tokens(self) -> int:
        """Tokens that it has."""
        return sum(atom.tokens for atom in self.atoms)

    @property
    def visible(self) -> list[Atom]:
        """What is returned."""
        return [atom for atom in self.atoms if not atom.hidden]

    @property
    def text(self) -> str:
        """Everything written, without the end of the text."""
        return self.text_from(0)

    def text_from(self, at: int, to: int | None = None) -> str:
        """The text of atoms in a row."""
        atoms = [atom for atom in self.atoms[at:to] if not atom.hidden]
        if self.model.vocabulary is None:
            return "".join(atom.text for atom in atoms)
        return self.model.decode([atom.token for atom in atoms if atom.token is not None])

    @property
    def answer(self) -> str | None:
        """The text behind the thinking; ``None`` where the line ends inside it."""
        if self.desk.frame.think_end is None:
            return self.text
        return None if self.answer_at is None else self.text_from(self.answer_at)

    @property
    def is_thinking(self) -> bool:
        """Whether the thinking may go on."""
        return self.state == "thinking"

    def tokens_left(self) -> int:
        """Tokens that may still be written, in this phase."""
        prompt = self.prompts["large"]
        left = 1 << 30 if self._max_tokens is None else self._max_tokens - self.tokens
        if not isinstance(prompt, str):
            left = min(left, self.model.limit - len(prompt) - self.tokens - 1)
        frame = self.desk.frame
        if frame.think_end is None:
            return min(left, frame.thinking_tokens + frame.answer_tokens - self.tokens)
        if self.is_thinking:
            return min(left, frame.thinking_tokens - self.tokens)
        written = sum(atom.tokens for atom in self.atoms[self.answer_at or 0 :])
        return min(left, frame.answer_tokens - written)

    def begin(self, kind: Kind) -> Mark:
        """A node of the trace that begins here."""
        return self.desk.tree.add(kind, self.mark, self.tokens)

    def _how(self, stop: ControllerStop, sampling: Sampling | None) -> dict[str, Any]:
        ends = self.model.ends if self.is_thinking and self.model.ends.think_end else None
        return {
            "session": self.session, "sampling": sampling or self.sampling,
            "stop": replace(stop, ends=ends), "fork_of": self.fork_of,
        }  # fmt: skip

    async def write(
        self,
        max_tokens: int | None = None,
        *,
        kind: Kind = "segment",
        stop: ControllerStop = NO_STOP,
        facts: int = 0,
        warped: bool = False,
        trip: Trip | None = None,
        sampling: Sampling | None = None,
    ) -> Span:
        """What the model writes next, not taken yet; no tokens where none are left."""
        most = self.tokens_left() if max_tokens is None else min(max_tokens, self.tokens_left())
        if most <= 0:
            return Span(finish="length")
        return await self.desk.call(
            self.context, self.begin(kind), max_tokens=most, facts=facts, warped=warped, trip=trip,
            **self._how(stop, sampling),
        )  # fmt: skip

    async def write_on(
        self, max_tokens: int | None = None, *, kind: Kind = "segment", facts: int = 0,
    ) -> Span:  # fmt: skip
        """Write and take, token by token, to the end of the phase or of the tokens."""
        most = self.tokens_left() if max_tokens is None else min(max_tokens, self.tokens_left())
        mark = self.begin(kind)
        found: list[Any] = []
        span = Span(finish="length")
        if most > 0:
            how = self._how(ControllerStop(), None)
            calls = self.desk.stream(self.context, mark, max_tokens=most, facts=facts, **how)
            async with aclosing(calls) as spans:
                async for span in spans:
                    found += span.facts
                    self.take(replace(span, mark=mark))
        mark.end = str(span.finish)
        return replace(span, facts=tuple(found), mark=mark)

    def take(self, span: Span) -> None:
        """Make what a call wrote part of the line."""
        mark = span.mark or self.mark
        if span.ids:
            self.atoms += [
                Atom(token, "", 1, mark, fact=fact)
                for token, fact in zip_longest(span.ids, span.facts[: len(span.ids)])
            ]
        else:
            self.atoms += [Atom(None, text, count, mark) for text, count in span.words]
        if span.finish == "think_end":
            self.close(len(self.atoms))
        elif span.finish == "eos":
            self.state = "eos"
        self._settle()

    def close(self, at: int) -> None:
        """The thinking ends there."""
        self.state, self.answer_at = "closed", at

    def reread(self) -> None:
        """Find the state anew in what was put in as a whole."""
        vocabulary, ends = self.model.vocabulary, self.model.ends
        self.state, self.answer_at = "thinking", None
        if vocabulary is None:
            return
        watcher = ControllerStop(ends=ends if ends.think_end else None).watch(vocabulary)
        for at, atom in enumerate(self.atoms):
            end = watcher.push(atom.token) if atom.token is not None else None
            if end == "eos":
                self.state = "eos"
                return
            if end == "think_end" and self.answer_at is None:
                self.close(at + 1)

    def cut(self, count: int, why: str = "") -> None:
        """Throw away all but the first atoms."""
        for atom in self.atoms[count:]:
            atom.mark.note = why or atom.mark.note
        del self.atoms[count:]
        if self.answer_at is not None and self.answer_at > count:
            self.answer_at = None
        if self.state in ("eos", "closed") and self.answer_at is None:
            self.state = "thinking"

    def insert(
        self, text: str, field: str, kind: Kind = "hint", at: int | None = None, *,
        hidden: bool = False,
    ) -> bool:  # fmt: skip
        """Put a text in, by ids where there are ids; at the end, or before an atom.

        Returns
        -------
        bool
            False where there is no room for it, or its bound is used up; then nothing was put in.
        """
        context = self.encode(text, field)
        count = len(context) if not isinstance(context, str) else max(1, len(text) // 4)
        left = 1 << 30 if self._max_tokens is None else self._max_tokens - self.tokens
        prompt = self.prompts["large"]
        if not isinstance(prompt, str):
            left = min(left, self.model.limit - len(prompt) - self.tokens - 1)
        if count > left:
            return False
        if kind != "closing":
            try:
                self.desk.use("injected_tokens", count)
            except LimitError:
                return False
        else:
            self.desk.injected += count
        mark = self.begin(kind)
        mark.text, mark.kept = text, 0
        if isinstance(context, str):
            new = [Atom(None, text, count, mark, injected=True, hidden=hidden)]
        else:
            new = [Atom(i, "", 1, mark, injected=True, hidden=hidden) for i in context]
        place = len(self.atoms) if at is None else at
        self.atoms[place:place] = new
        self._settle()
        return True

    def encode(self, text: str, field: str) -> Context:
        """A text as the model reads it.

        Raises
        ------
        SpecError
            Its tokenizer cannot write it.
        """
        if self.model.vocabulary is None:
            return text
        return tuple(encode_text(self.model.vocabulary.tokenizer, text, field))

    async def probe(
        self,
        suffix: str,
        field: str,
        *,
        max_tokens: int,
        sampling: Sampling,
        stop: ControllerStop = NO_STOP,
        facts: int = 0,
        warped: bool = False,
        apart: bool = False,
    ) -> Span | None:
        """What the model would write behind the line and a suffix; ``None`` where that failed.

        A probe shares the line's session: its own tokens are forgotten with the next call. One that
        runs beside it (``apart``) has its own.
        """
        name = f"{self.session}.probe" if apart else self.session
        mark = self.begin("probe")
        try:
            self.desk.use("probes")
            context = self.model.join(self.context, self.encode(suffix, field))
            room = self.model.limit - (len(context) if not isinstance(context, str) else 0) - 1
            if room <= 0:
                raise LimitError("no room in the model's context")
            return await self.desk.call(
                context, mark, session=name, max_tokens=min(max_tokens, room), sampling=sampling,
                stop=stop, facts=facts, warped=warped,
                fork_of=self.session if apart else self.fork_of,
            )  # fmt: skip
        except FAILURES as error:
            mark.error = _short(error)
            return None
        finally:
            if apart:
                await self.desk.release(name)

    def branch(self, *key: object, kind: Kind = "line", at: int | None = None) -> "Page":
        """Another line that begins as this one, or its first atoms, with a session of its own."""
        name = "-".join(str(part) for part in key)
        mark = self.desk.tree.add(kind, self.mark, self.tokens)
        path = (*self.path, *key)
        how = reseeded(self.sampling, self.desk.seed(*path))
        line = Page(
            self.desk, self.prompts, session=f"{self.session}.{name}", sampling=how, mark=mark,
            max_tokens=self._max_tokens,
        )  # fmt: skip
        line.path = path
        line.atoms = list(self.atoms if at is None else self.atoms[:at])
        line.state, line.answer_at, line.fork_of = self.state, self.answer_at, self.session
        if at is not None and at < len(self.atoms):
            line.cut(at)
        return line

    async def over(self) -> None:
        """Its session is not needed any more."""
        await self.desk.release(self.session)

    def adopt(self, other: "Page") -> None:
        """Become another line."""
        self.atoms, self.state = list(other.atoms), other.state
        self.answer_at, self.why = other.answer_at, other.why or self.why
        self._settle()

    def flush(self) -> None:
        """Emit what is left."""
        self.outlet.held = False
        self._settle()
        rest = self._stream.flush() if self._stream is not None else ""
        if rest and self.outlet.emit is not None:
            self.outlet.emit(rest)

    def _settle(self) -> None:
        outlet = self.outlet
        if outlet.held or (outlet.emit is None and outlet.watch is None):
            return
        new, self._settled = self.atoms[self._settled :], len(self.atoms)
        new = [atom for atom in new if not atom.hidden]
        vocabulary = self.model.vocabulary
        ids = tuple(atom.token for atom in new if atom.token is not None)
        if outlet.watch is not None and ids:
            outlet.watch(ids)
        if outlet.emit is None or not new:
            return
        if vocabulary is None:
            text = "".join(atom.text for atom in new)
        else:
            self._stream = self._stream or TextStream(vocabulary)
            text = self._stream.push([i for i in ids if i not in vocabulary.eos_ids])
        if text:
            outlet.emit(text)


def _short(error: Exception) -> str:
    return str(error)[:200]


async def verdict(
    page: Page, text: str, *, role: Role = "small", max_tokens: int, facts: int = 0,
    session: str | None = None,
) -> Span | None:  # fmt: skip
    """A greedy call of a second model on a text of its own; ``None`` where that failed."""
    desk = page.desk
    model, mark = desk.models[role], page.begin("verdict")
    name = session or f"{page.session}.verdict"
    try:
        desk.use("probes")
        return await desk.call(
            model.encode(text), mark, session=name, max_tokens=max_tokens,
            sampling=Sampling(), stop=ControllerStop(), role=role, facts=facts,
        )  # fmt: skip
    except FAILURES as error:
        mark.error = _short(error)
        return None
    finally:
        await desk.release(name, role)


__all__ = ["Atom", "BackendError", "Outlet", "Page", "Sequence", "SpecError", "State", "verdict"]
