"""One request's calls: who asks what of which model, and what it has cost. Knows no method."""

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any

from tokenlens.controllers.settings import Frame
from tokenlens.controllers.stops import ControllerStop
from tokenlens.controllers.tree import Mark, SteerUsage, Tree
from tokenlens.errors import BackendError, LimitError
from tokenlens.routing.backend import Ask, Backend, Context
from tokenlens.routing.facts import Fact, Trip
from tokenlens.routing.settings import Role, Sampling
from tokenlens.routing.vocabulary import RouterVocabulary, StepEnds


@dataclass(frozen=True)
class Model:
    """A model, and how its texts are read; ``vocabulary`` is ``None`` where it is given text."""

    role: Role
    backend: Backend
    vocabulary: RouterVocabulary | None
    ends: StepEnds

    @property
    def limit(self) -> int:
        """Tokens of its context."""
        known: int | None = getattr(self.backend, "max_length", None)
        return known or 1 << 30

    def encode(self, text: str) -> Context:
        """A text as a context's end."""
        return text if self.vocabulary is None else tuple(self.vocabulary.encode(text))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, without ends of the text."""
        assert self.vocabulary is not None
        return self.vocabulary.decode([i for i in ids if i not in self.vocabulary.eos_ids])

    def join(self, context: Context, more: Context) -> Context:
        """A context that goes on."""
        if isinstance(context, str):
            assert isinstance(more, str)
            return context + more
        assert not isinstance(more, str)
        return (*context, *more)


@dataclass(frozen=True)
class Span:
    """What a call wrote, and what is known of it.

    Attributes
    ----------
    words
        Pieces of text with their tokens, where a server gives no ids.
    finish
        ``think_end``, ``eos``, ``stop`` (what was asked for), ``length`` or ``trip``.
    tripped
        Of the token that would have come, where its distribution ended the call.
    """

    ids: tuple[int, ...] = ()
    words: tuple[tuple[str, int], ...] = ()
    facts: tuple[Fact, ...] = ()
    finish: str | None = None
    tripped: Fact | None = None
    mark: Mark | None = None

    @property
    def tokens(self) -> int:
        """Tokens that it has."""
        return len(self.ids) or sum(count for _, count in self.words)

    @property
    def context(self) -> Context:
        """As a context goes on with it."""
        return self.ids if self.ids else "".join(text for text, _ in self.words)

    def log_probs(self) -> list[float]:
        """Of its tokens, where facts came."""
        return [fact.log_prob for fact in self.facts]


@dataclass
class Counts:
    """What one model did, while the request runs."""

    tokens: int = 0
    calls: int = 0


@dataclass
class Desk:
    """What all calls of one request share; it is closed on every way out."""

    frame: Frame
    session: str
    models: Mapping[Role, Model]
    sampling: Sampling
    arguments: Mapping[str, Any] = field(default_factory=dict)
    probes: int = 0
    forks: int = 0
    injected: int = 0

    def __post_init__(self) -> None:
        self.tree = Tree(self.frame.trace_nodes)
        self.counts = {role: Counts() for role in self.models}
        self.notes: dict[str, Any] = {}
        self._sessions: dict[tuple[str, Role], None] = {}

    def seed(self, *key: object) -> int:
        """A seed of the request's own and a call's name: whenever the call is made, the same."""
        if not key:
            return self.sampling.seed
        text = ":".join(str(part) for part in (self.sampling.seed, *key)).encode()
        return int.from_bytes(blake2b(text, digest_size=8).digest(), "big") >> 1

    def use(self, name: str, count: int = 1) -> None:
        """Count against a bound.

        Raises
        ------
        LimitError
            It is used up.
        """
        most = getattr(self.frame.limits, name)
        attribute = {"injected_tokens": "injected"}.get(name, name)
        if getattr(self, attribute) + count > most:
            raise LimitError(f"limits.{name}: got more than {most}; allowed: {most} a request")
        setattr(self, attribute, getattr(self, attribute) + count)

    async def stream(
        self,
        context: Context,
        mark: Mark,
        *,
        session: str,
        max_tokens: int,
        sampling: Sampling,
        stop: ControllerStop,
        role: Role = "large",
        facts: int = 0,
        warped: bool = False,
        trip: Trip | None = None,
        fork_of: str | None = None,
        pieces: bool = True,
    ) -> AsyncGenerator[Span]:
        """One call's pieces, as they come; the last one has ``finish``. Closing it aborts."""
        model = self.models[role]
        backend, words = model.backend, model.vocabulary
        own_trip = trip is not None and not getattr(backend, "trips", False)
        ends = stop.ends
        stop_ids, stop_texts = stop.ids, stop.texts
        if ends is not None and ends.think_end:
            if ends.marker is not None and ends.marker.text is None:
                stop_ids |= {ends.marker.ids[0]}
            else:
                stop_texts = (*stop_texts, ends.think_end)
        watcher = stop.watch(words)
        self._sessions[session, role] = None
        counts = self.counts[role]
        counts.calls += 1
        ask = Ask(
            session, context, max_tokens, sampling,
            matcher=watcher.copy() if words is not None else None,  # type: ignore[arg-type]
            stream=pieces or own_trip, arguments=self.arguments, trip=trip,
            facts=max(facts, 20) if own_trip else facts, warped=warped, stop_ids=stop_ids,
            stop_texts=stop_texts, fork_of=fork_of,
            whole=not pieces and not own_trip,
        )  # fmt: skip
        async with aclosing(backend.generate(ask)) as chunks:
            async for chunk in chunks:
                counts.tokens += chunk.tokens
                mark.tokens += chunk.tokens
                if words is None:
                    text, why = watcher.read(chunk.text)
                    end = why or chunk.finish
                    yield Span(words=((text, chunk.tokens),), finish=end)
                    if end is not None:
                        return
                    continue
                taken = 0
                end = None
                for at, token in enumerate(chunk.ids):
                    fact = chunk.facts[at] if own_trip and at < len(chunk.facts) else None
                    if trip is not None and fact is not None and trip.is_met(fact):
                        end = "trip"
                        break
                    taken += 1
                    end = watcher.push(token)
                    if end is not None:
                        break
                tripped = None
                if end == "trip":
                    tripped = chunk.facts[taken]
                elif chunk.finish == "trip":
                    end, tripped = "trip", chunk.facts[-1]
                end = end or chunk.finish
                yield Span(chunk.ids[:taken], (), chunk.facts[:taken], end, tripped)
                if end is not None:
                    return
        raise BackendError(role, "truncated", "its answer ends without a reason")

    async def call(self, context: Context, mark: Mark, **kwargs: Any) -> Span:
        """One call to its end."""
        ids: list[int] = []
        words: list[tuple[str, int]] = []
        facts: list[Fact] = []
        last = Span()
        async with aclosing(self.stream(context, mark, pieces=False, **kwargs)) as spans:
            async for last in spans:
                ids += last.ids
                words += last.words
                facts += last.facts
        mark.end = str(last.finish)
        span = Span(tuple(ids), tuple(words), tuple(facts), last.finish, last.tripped, mark)
        mark.text = self.text(span, kwargs.get("role", "large"))
        return span

    def text(self, span: Span, role: Role = "large") -> str:
        """A span's text."""
        if span.ids:
            return self.models[role].decode(span.ids)
        return "".join(text for text, _ in span.words)

    async def release(self, session: str, role: Role | None = None) -> None:
        """A session is over."""
        for name, model in self.models.items():
            if role in (None, name) and (session, name) in self._sessions:
                del self._sessions[session, name]
                # A backend that is gone holds nothing for us any more.
                with suppress(BackendError):
                    await model.backend.release(session)

    async def close(self) -> None:
        """Every session of the request is over."""
        for session, role in list(self._sessions):
            await self.release(session, role)

    def usage(self, kept: Mapping[Role, int]) -> dict[Role, SteerUsage]:
        """Kept and thrown away, by model."""
        return {
            role: SteerUsage(
                steps=counts.calls, calls=counts.calls, tokens=kept.get(role, 0),
                discarded_tokens=counts.tokens - kept.get(role, 0),
            )
            for role, counts in self.counts.items()
        }  # fmt: skip


def reseeded(how: Sampling, seed: int, **changes: Any) -> Sampling:
    """The same sampling with another seed."""
    return how.model_copy(update={"seed": seed, **changes})


Emit = Callable[[str], None]
__all__ = ["Counts", "Desk", "Emit", "Model", "Span", "replace", "reseeded"]
