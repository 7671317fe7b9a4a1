"""What the step loop asks of a model, whoever runs it."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Literal, Protocol

from tokenlens.routing.facts import Fact, Trip
from tokenlens.routing.settings import Role, Sampling
from tokenlens.routing.signals import FirstTokenSignals
from tokenlens.routing.vocabulary import End, Matcher, StepEnds

Context = tuple[int, ...] | str
"""What has been written so far: ids where the router has the model's tokenizer, text otherwise."""

Finish = Literal["stop", "eos", "length", "trip"]
"""``trip``: the next token's distribution met the condition of the call (:class:`Trip`)."""


@dataclass(frozen=True)
class Ask:
    """One call: continue a context.

    Attributes
    ----------
    session
        The request, so that an engine can keep its cache.
    ends
        Stop with the token that ends the step; ``None`` = only at the end of the text.
    matcher
        The same for engines that look at ids; it knows what the step holds already.
    signals
        Whether the first token's signals are wanted.
    stream
        Whether chunks should come as they are made; otherwise one at the end will do.
    last_resort
        The other model has failed: wait for a server that is left alone to be tried again.
    arguments
        A decoding spec for the server, which carries it out (:mod:`tokenlens.routing.carried`).
    facts
        The most likely tokens that are wanted beside each generated one; 0: no facts.
    warped
        Whether facts are of the distribution after temperature and filters.
    trip
        Ends the call before a token. Backends that cannot (:attr:`Backend.trips`) pass it over.
    stop_ids, stop_texts
        End the call with them. Hints: who asks looks for them as well.
    whole
        Nobody looks at pieces: a server may answer in one.
    fork_of
        The session whose context this one begins with, for engines with a cache a session.
    """

    session: str
    context: Context
    max_tokens: int
    sampling: Sampling
    ends: StepEnds | None = None
    matcher: Matcher | None = None
    signals: bool = False
    stream: bool = False
    last_resort: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict)
    facts: int = 0
    warped: bool = False
    trip: Trip | None = None
    stop_ids: frozenset[int] = frozenset()
    stop_texts: tuple[str, ...] = ()
    whole: bool = False
    fork_of: str | None = None

    @property
    def engine_seed(self) -> int:
        """A seed for engines that begin a stream of noise with every call."""
        text = f"{self.sampling.seed}:{len(self.context)}".encode()
        return int.from_bytes(blake2b(text, digest_size=8).digest(), "big") >> 1


@dataclass(frozen=True)
class Chunk:
    """A piece of what a model wrote; the last one has ``finish``.

    ``ids`` may be empty where the backend gives only text; then ``tokens`` counts them.
    """

    ids: tuple[int, ...] = ()
    text: str = ""
    tokens: int = 0
    signals: FirstTokenSignals | None = None
    finish: Finish | None = None
    # one for each of the ids, where they were asked for; one alone behind a trip
    facts: tuple[Fact, ...] = ()


@dataclass
class Draft:
    """What a model wrote and nobody has taken yet."""

    role: Role
    ids: list[int] = field(default_factory=list)
    text: str = ""
    tokens: int = 0
    end: End | None = None
    signals: FirstTokenSignals | None = None


class Backend(Protocol):
    """A model that continues contexts; any number of calls at once."""

    @property
    def gives_full_entropy(self) -> bool:
        """Whether ``FirstTokenSignals.entropy`` is of the full vocabulary."""

    def generate(self, ask: Ask) -> AsyncGenerator[Chunk]:
        """Continue a context. Closing the iterator stops the engine."""

    async def log_probs(self, session: str, context: Context, ids: Sequence[int]) -> list[float]:
        """Natural logarithms of the probabilities of ``ids`` after the context, at temperature 1.

        Raises NotImplementedError where the engine does not tell.
        """

    async def release(self, session: str) -> None:
        """The request is over."""

    async def close(self) -> None:
        """No call will follow."""
