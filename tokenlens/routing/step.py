"""One step while it is being written: what a policy may do with it.

Nothing that a model drafts is part of the text before the policy takes it. Knows no policy.
"""

import math
import time
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tokenlens.routing.backend import Ask, Backend, Chunk, Draft
from tokenlens.routing.settings import Role, Sampling, other
from tokenlens.routing.trace import ModelUsage, Piece, Reading, RouteStep
from tokenlens.routing.transcript import Transcript
from tokenlens.routing.vocabulary import End, Matcher, StepEnds


@dataclass
class Notes:
    """What a policy leaves in the trace."""

    probe_tokens: int = 0
    draft_tokens: int = 0
    signal: float | None = None
    signal_name: str | None = None
    threshold: float | None = None
    score: float | None = None
    cue: str | None = None
    fallback: str | None = None


@dataclass
class UsageTally:
    """What one model did for a request, while it runs."""

    steps: int = 0
    tokens: int = 0
    discarded_tokens: int = 0
    calls: int = 0

    def usage(self) -> ModelUsage:
        """As the trace has it."""
        return ModelUsage(**vars(self))


@dataclass(frozen=True)
class RoutedRequest:
    """What all steps of one request share."""

    session: str
    transcript: Transcript
    backends: Mapping[Role, Backend]
    ends: Mapping[Role, StepEnds]
    sampling: Sampling
    tallies: Mapping[Role, UsageTally]
    streams: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict)


class RoutedStep:
    """One step of one request, or its answer.

    Parameters
    ----------
    tokens_left
        Tokens that it may have.
    bounded
        Whether it ends with the delimiter; an answer goes on to the end of the text.
    """

    def __init__(
        self, request: RoutedRequest, index: int, tokens_left: int, *, bounded: bool = True
    ) -> None:
        self.index = index
        self.notes = Notes()
        self.end: End | None = None
        self.text = ""
        self.pieces: list[tuple[Role | Literal["router"], int]] = []
        self._request = request
        self._max_tokens = tokens_left
        self._bounded = bounded
        self._readings: list[Reading] = []
        self._began = time.monotonic()
        # The two vocabularies may differ, so each has its own view of how far the end has come.
        self._matchers: dict[Role, Matcher | None] = {
            "small": self._new_matcher("small"),
            "large": self._new_matcher("large"),
        }

    @property
    def tokens_left(self) -> int:
        """Tokens that it may still have."""
        return self._max_tokens - self.written

    @property
    def written(self) -> int:
        """Tokens that it has."""
        return sum(count for _, count in self.pieces)

    @property
    def seed(self) -> int:
        """The request's seed."""
        return self._request.sampling.seed

    @property
    def is_over(self) -> bool:
        """Whether nothing more can be written into it."""
        return self.end is not None or self.tokens_left <= 0

    def writers(self) -> set[str]:
        """Who has written in it."""
        return {writer for writer, _ in self.pieces}

    def text_of(self, draft: Draft) -> str:
        """A draft's text."""
        return self._request.transcript.text_of(draft)

    async def draft(
        self,
        role: Role,
        *,
        max_tokens: int | None = None,
        signals: bool = False,
        greedy: bool = False,
    ) -> Draft:
        """Have a model continue the step; nothing is taken.

        Raises
        ------
        BackendError
            The model does not answer.
        """
        draft = Draft(role)
        matcher = self._matchers[role]
        matcher = matcher.copy() if matcher is not None else None
        async for chunk in self._chunks(role, max_tokens, signals, greedy, streams=False):
            draft.signals = chunk.signals or draft.signals
            self._append(draft, chunk, matcher)
            if draft.end is not None:
                break
        return draft

    def take(self, draft: Draft) -> None:
        """Make a draft part of the text."""
        matcher = self._matchers[draft.role]
        if matcher is not None:
            for token in draft.ids:
                matcher.push(token)
        self._wrote(draft.role, draft.tokens)
        request = self._request
        request.tallies[draft.role].tokens += draft.tokens
        text = request.transcript.write(draft.role, draft.ids, draft.text, draft.tokens)
        reader = self._matchers[other(draft.role)]
        if reader is not None:
            reader.read(text)
        self.text += text
        self.end = draft.end

    def discard(self, draft: Draft, *, probe: bool = False) -> None:
        """Throw a draft away; its tokens are counted."""
        if probe:
            self.notes.probe_tokens += draft.tokens
        else:
            self.notes.draft_tokens += draft.tokens
        self._request.tallies[draft.role].discarded_tokens += draft.tokens

    async def write(
        self, role: Role, *, max_tokens: int | None = None, last_resort: bool = False
    ) -> None:
        """Have a model write on, until the step ends or ``max_tokens`` are there.

        ``last_resort``: the other model cannot, so this one is waited for if it is left alone.

        Raises
        ------
        BackendError
            The model does not answer. What it wrote before is part of the text.
        """
        if self.is_over:
            return
        streams = self._request.streams
        async for chunk in self._chunks(
            role, max_tokens, False, False, streams=streams, last_resort=last_resort
        ):
            draft = Draft(role)
            matcher = self._matchers[role]
            self._append(draft, chunk, matcher.copy() if matcher is not None else None)
            self.take(draft)
            if self.end is not None:
                break

    def insert(self, text: str) -> None:
        """Put a text of the router's own in."""
        tokens, new = self._request.transcript.insert(text)
        self._wrote("router", tokens)
        self.text += new

    async def log_probs(self, role: Role, draft: Draft) -> list[float]:
        """What another model thinks of each token of a draft, as natural logarithms."""
        transcript = self._request.transcript
        context, readings = transcript.context(role)
        self._readings += readings
        self._request.tallies[role].calls += 1
        ids = transcript.read(role, draft)
        return await self._request.backends[role].log_probs(self._request.session, context, ids)

    async def ask(self, role: Role, draft: Draft, question: str, prefix: str) -> dict[str, float]:
        """Probabilities of the one token with which a model answers a question about a draft."""
        asked = self._request.transcript.asked(role, draft, question, prefix)
        greedy = self._request.sampling.model_copy(update={"temperature": 0.0})
        ask = Ask(self._request.session, asked, 1, greedy, signals=True)
        self._request.tallies[role].calls += 1
        top: dict[str, float] = {}
        async for chunk in self._request.backends[role].generate(ask):
            for text, value in chunk.signals.top if chunk.signals is not None else ():
                top[text] = top.get(text, 0.0) + math.exp(value)
        return top

    def record(self, phase: Literal["thinking", "answer"], end: str) -> RouteStep:
        """The step as the trace has it."""
        notes = vars(self.notes).copy()
        signal = notes["signal"]
        if signal is not None and math.isnan(signal):
            notes["signal"] = None
        threshold = notes["threshold"]
        if threshold is not None and not math.isfinite(threshold):
            notes["threshold"] = None
        return RouteStep(
            index=self.index,
            phase=phase,
            pieces=tuple(Piece(writer=writer, tokens=count) for writer, count in self.pieces),
            text=self.text,
            end=end,
            readings=tuple(self._readings),
            seconds=time.monotonic() - self._began,
            **notes,
        )

    def _new_matcher(self, role: Role) -> Matcher | None:
        ends = self._request.ends[role]
        vocabulary = ends.vocabulary
        if vocabulary is None:
            return None
        return Matcher(ends if self._bounded else None, vocabulary)

    def _wrote(self, writer: Role | Literal["router"], tokens: int) -> None:
        if writer != "router" and writer not in self.writers():
            self._request.tallies[writer].steps += 1
        if self.pieces and self.pieces[-1][0] == writer:
            tokens += self.pieces.pop()[1]
        self.pieces.append((writer, tokens))

    async def _chunks(
        self,
        role: Role,
        max_tokens: int | None,
        signals: bool,
        greedy: bool,
        *,
        streams: bool,
        last_resort: bool = False,
    ) -> AsyncGenerator[Chunk]:
        request = self._request
        context, readings = request.transcript.context(role)
        self._readings += readings
        sampling = request.sampling
        if greedy:
            sampling = sampling.model_copy(update={"temperature": 0.0})
        matcher = self._matchers[role]
        ask = Ask(
            session=request.session,
            context=context,
            max_tokens=min(self.tokens_left, max_tokens or self.tokens_left),
            sampling=sampling,
            ends=request.ends[role] if self._bounded else None,
            matcher=matcher.copy() if matcher is not None else None,
            signals=signals,
            stream=streams,
            last_resort=last_resort,
            arguments=request.arguments,
        )
        request.tallies[role].calls += 1
        chunks = request.backends[role].generate(ask)
        try:
            async for chunk in chunks:
                yield chunk
        finally:
            await chunks.aclose()

    def _append(self, draft: Draft, chunk: Chunk, matcher: Matcher | None) -> None:
        """Add a chunk to a draft, cut where the step ends: engines stop late or not at all."""
        if matcher is not None:
            for token in chunk.ids:
                draft.ids.append(token)
                draft.tokens += 1
                draft.end = matcher.push(token)
                if draft.end is not None:
                    return
        else:
            # The end may have begun in what is there already.
            before = self.text + draft.text
            text, end = before + chunk.text, None
            if self._bounded:
                text, end = self._request.ends[draft.role].cut_text(text)
            draft.text = text[len(self.text) :]
            draft.tokens += chunk.tokens
            draft.end = end
            if end is not None:
                return
        if chunk.finish == "eos":
            draft.end = "eos"
        elif chunk.finish == "stop":
            draft.end = "boundary" if self._bounded else "eos"
