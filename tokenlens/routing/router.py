"""The step loop: two models write one text, whoever decides and whoever runs them.

Knows no policy by name and no engine. Every request is a coroutine of its own, so that neither
model waits for another request's step.
"""

import contextlib
import uuid
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from tokenlens.errors import BackendError, SpecError
from tokenlens.routing.backend import Backend, Context
from tokenlens.routing.policies import policies
from tokenlens.routing.settings import (
    ROLES,
    GlimpRouter,
    Role,
    RoutingSpec,
    Sampling,
    SpecReason,
    SpeculativeThinking,
    other,
    parse_routing,
)
from tokenlens.routing.step import RoutedRequest, RoutedStep, UsageTally
from tokenlens.routing.trace import Handover, RouteStep, RouteTrace, report
from tokenlens.routing.transcript import Transcript
from tokenlens.routing.vocabulary import RouterVocabulary, StepEnds, same_vocabulary
from tokenlens.spec import encode_text

PROMPT_END = 256
"""Tokens of a prompt that are looked at for an end marker and white space behind it."""

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Routed:
    """One text, and how it came about.

    Attributes
    ----------
    ids
        Everything generated, in the vocabulary of who wrote it; empty where backends give text.
    text
        The same as text, without the end-of-text token.
    """

    ids: list[int]
    text: str
    finish_reason: FinishReason
    tokens: int
    trace: RouteTrace


class Loop(Protocol):
    """What a server serves: a router, or a controller."""

    handover: Handover

    @property
    def backends(self) -> Mapping[Role, Backend]:
        """The models, by role."""

    @property
    def vocabularies(self) -> Mapping[Role, RouterVocabulary | None]:
        """Their tokenizers; ``None`` where a model is given text."""

    @property
    def run(self) -> Callable[..., Coroutine[Any, Any, Routed]]:
        """Writes one text."""

    async def close(self) -> None:
        """No request will follow."""


class Router:
    """Two models behind one policy.

    Parameters
    ----------
    small, large
        The backends.
    spec
        A :class:`RoutingSpec`, a mapping, or a policy's name.
    small_vocabulary, large_vocabulary
        The models' tokenizers; ``None`` for a backend that takes and gives text. Ids are handed
        over where both mean the same.

    Raises
    ------
    SpecError
        The settings are wrong, or these models cannot carry them out.
    """

    def __init__(
        self,
        small: Backend,
        large: Backend,
        spec: RoutingSpec | Mapping[str, Any] | str = "glimprouter",
        *,
        small_vocabulary: RouterVocabulary | None = None,
        large_vocabulary: RouterVocabulary | None = None,
    ) -> None:
        self.spec = parse_routing(spec)
        self.backends: dict[Role, Backend] = {"small": small, "large": large}
        self.vocabularies: dict[Role, RouterVocabulary | None] = {
            "small": small_vocabulary,
            "large": large_vocabulary,
        }
        shared = (
            small_vocabulary is not None
            and large_vocabulary is not None
            and same_vocabulary(small_vocabulary, large_vocabulary)
        )
        self.handover: Handover = "ids" if shared else "text"
        self._ends = {role: StepEnds.of(self.spec, self.vocabularies[role]) for role in ROLES}
        self._check()
        self._policy = policies(self.spec.policy)

    async def run(
        self,
        prompt: Context | Mapping[Role, Context],
        *,
        sampling: Sampling | None = None,
        max_tokens: int | None = None,
        emit: Callable[[str], None] | None = None,
        watch: Callable[[tuple[int, ...]], None] | None = None,
        session: str | None = None,
        arguments: Mapping[str, Any] | None = None,
    ) -> Routed:
        """Write one text.

        Parameters
        ----------
        prompt
            Ids (text for a backend without tokenizer), or one for each model where they differ.
        max_tokens
            Of the whole text, above the spec's own budgets.
        emit
            Is given text as soon as it is certain.
        watch
            Is given ids in the same way.
        arguments
            A decoding spec for servers that carry it out, as in their own requests.

        Raises
        ------
        BackendError
            Neither model answers.
        """
        prompts: Mapping[Role, Context] = (
            prompt if isinstance(prompt, Mapping) else {"small": prompt, "large": prompt}
        )
        transcript = Transcript(prompts, self.vocabularies, self.handover, emit, watch)
        request = RoutedRequest(
            session or uuid.uuid4().hex,
            transcript,
            self.backends,
            self._ends,
            sampling or Sampling(),
            {role: UsageTally() for role in ROLES},
            emit is not None or watch is not None,
            arguments or {},
        )
        run = _Run(self.spec, request, self._policy(), max_tokens)
        try:
            finish = await run.finish(
                leaves_thinking(self.spec, prompts["large"], self.vocabularies["large"])
            )
        finally:
            for backend in self.backends.values():
                # A backend that is gone holds nothing for us any more.
                with contextlib.suppress(BackendError):
                    await backend.release(request.session)
        transcript.flush()
        trace = run.trace(self.handover, finish)
        report(trace)
        return Routed(transcript.ids, transcript.text, finish, transcript.tokens, trace)

    async def close(self) -> None:
        """No request will follow."""
        for backend in self.backends.values():
            await backend.close()

    def _check(self) -> None:
        policy = self.spec.policy
        if isinstance(policy, GlimpRouter) and policy.entropy_of == "raw":
            small = self.backends["small"]
            if policy.signal == "entropy" and not small.gives_full_entropy:
                raise SpecError.of(
                    "policy.entropy_of", "raw",
                    "auto or topk: this small model's server gives the 20 largest probabilities,"
                    " not the entropy of the full vocabulary",
                )  # fmt: skip
        texts = {"closing": self.spec.closing_text}
        if isinstance(policy, SpeculativeThinking) and policy.recap_after:
            texts["policy.recap_text"] = policy.recap_text
        large = self.vocabularies["large"]
        if isinstance(policy, SpecReason) and policy.score == "verbal" and large is not None:
            # A model that reads unknown words would answer with some number all the same.
            for field in ("question", "answer_prefix"):
                if text := getattr(policy, field):
                    encode_text(large.tokenizer, text, f"policy.{field}")
        for vocabulary in {id(v): v for v in self.vocabularies.values() if v is not None}.values():
            for field, text in texts.items():
                if text:
                    encode_text(vocabulary.tokenizer, text, field)


class RouterMarkers(Protocol):
    """What opens and ends a thought."""

    @property
    def think_start(self) -> str:
        """The start marker."""

    @property
    def think_end(self) -> str | None:
        """The end marker; ``None``: a model that does not think."""


def leaves_thinking(
    spec: RouterMarkers, prompt: Context, vocabulary: RouterVocabulary | None
) -> bool:
    """Whether a prompt leaves the thinking to the model."""
    if spec.think_end is None:
        return True
    text = prompt if isinstance(prompt, str) else ""
    if not isinstance(prompt, str) and vocabulary is not None:
        # Only its end counts, and the event loop waits for this.
        text = vocabulary.decode(prompt[-PROMPT_END:])
    ended = text.rfind(spec.think_end)
    # An end marker with text behind it belongs to an earlier turn, a start marker in front of
    # the end of a turn to somebody else's words: both leave the thinking to the model.
    closed = ended >= 0 and not text[ended + len(spec.think_end) :].strip()
    return not (closed and ended > text.rfind(spec.think_start))


class _Run:
    """One request on its way through the loop."""

    def __init__(
        self, spec: RoutingSpec, request: RoutedRequest, policy: Any, max_tokens: int | None
    ) -> None:
        self._spec = spec
        self._request = request
        self._policy = policy
        self._max_tokens = max_tokens
        self._steps: list[RouteStep] = []
        self._texts: list[str] = []
        self._thinking_tokens = 0
        self._large_steps = 0

    async def finish(self, thinks: bool) -> FinishReason:
        """Think, then answer."""
        end = await self._think() if thinks else "think_end"
        if end in ("eos", "length"):
            return "stop" if end == "eos" else "length"
        return await self._answer()

    async def _think(self) -> str:
        """Write steps until the thinking is over: ``think_end``, ``eos`` or ``length``."""
        spec = self._spec
        while True:
            left = min(spec.thinking_tokens - self._thinking_tokens, self._left())
            if self._left() <= 0:
                return "length"
            if left <= 0 or len(self._texts) >= spec.max_steps:
                return self._close("budget")
            step = RoutedStep(self._request, len(self._texts), min(spec.step_tokens, left))
            if len(self._texts) < spec.first_steps_large:
                await self._write(step, "large")
            else:
                await self._write(step, None)
            self._texts.append(step.text)
            self._thinking_tokens += step.written
            self._large_steps += "large" in step.writers()
            end = step.end or "length"
            if end in ("boundary", "length") and spec.duplicate_guard and self._repeats():
                self._record(step, "thinking", "duplicate")
                return self._close("duplicate")
            self._record(step, "thinking", end)
            if end in ("eos", "think_end"):
                return end

    async def _answer(self) -> FinishReason:
        spec = self._spec
        tokens_left = min(spec.answer_tokens, self._left())
        if tokens_left <= 0:
            return "length"
        step = RoutedStep(self._request, len(self._texts), tokens_left, bounded=False)
        by = spec.answer_by
        await self._write(step, None if by == "policy" else by)
        self._record(step, "answer", step.end or "length")
        return "stop" if step.end == "eos" else "length"

    async def _write(self, step: RoutedStep, role: Role | None) -> None:
        try:
            if role is None:
                await self._policy.write(step)
            else:
                await step.write(role)
        except BackendError as error:
            # A request that the model refuses is wrong for the other one, too.
            if not self._spec.fallback or error.kind == "refused":
                raise
            step.notes.fallback = str(error)
            try:
                await step.write(other(error.role), last_resort=True)
            except BackendError as second:
                # Left alone until now, the first one may be the one that comes back.
                if error.kind != "open" or second.kind == "refused":
                    raise
                await step.write(error.role, last_resort=True)

    def _close(self, why: str) -> str:
        """End the thinking by force."""
        text = self._spec.closing_text
        if not text:
            return "length"
        step = RoutedStep(self._request, len(self._texts), 1)
        step.insert(text)
        self._record(step, "thinking", why)
        return "think_end"

    def _repeats(self) -> bool:
        last = self._texts[-4:]
        if len(self._texts) > 2 and last[-1] == last[-2]:
            return True
        return len(last) == 4 and last[:2] == last[2:]

    def _left(self) -> int:
        if self._max_tokens is None:
            return 1 << 30
        return self._max_tokens - self._request.transcript.tokens

    def _record(self, step: RoutedStep, phase: Literal["thinking", "answer"], end: str) -> None:
        self._steps.append(step.record(phase, end))

    def trace(self, handover: Handover, finish: str) -> RouteTrace:
        """The record of the request."""
        tallies = self._request.tallies
        tokens = tallies["small"].tokens + tallies["large"].tokens
        kept = self._steps[: self._spec.trace_steps]
        return RouteTrace(
            spec=self._spec,
            handover=handover,
            finish_reason=finish,
            usage={role: tallies[role].usage() for role in ROLES},
            large_step_share=self._large_steps / max(1, len(self._texts)),
            large_token_share=tallies["large"].tokens / max(1, tokens),
            steps=tuple(kept),
            dropped_steps=len(self._steps) - len(kept),
        )
