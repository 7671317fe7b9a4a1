"""The controller: one method over one or two models, a coroutine a request. Knows no engine."""

import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Literal

from tokenlens.controllers.desk import Desk, Model
from tokenlens.controllers.page import Outlet, Page
from tokenlens.controllers.results import Steered
from tokenlens.controllers.spec import ControllerSpec, parse_controller
from tokenlens.controllers.tree import SteerTrace, report
from tokenlens.controllers.votes import equality, read
from tokenlens.errors import BackendError, SpecError
from tokenlens.routing.backend import Backend, Context
from tokenlens.routing.canonical import is_canonical
from tokenlens.routing.router import FinishReason, leaves_thinking
from tokenlens.routing.settings import Role, Sampling
from tokenlens.routing.vocabulary import RouterVocabulary, StepEnds, same_vocabulary
from tokenlens.spec import encode_text
from tokenlens.spec.markers import marker_of


class Controller:
    """One method over a model, and a second one where the method needs it.

    Parameters
    ----------
    model
        Writes the text.
    spec
        A :class:`ControllerSpec`, a mapping, or a method's name.
    vocabulary
        The model's tokenizer; ``None`` for a server that takes and gives text.
    second, second_vocabulary
        A verifier or a proposer.
    scorers
        Functions of the caller's that some methods take in the place of models: ``value`` (FETCH:
        a text to a number), ``embed`` (texts to rows), ``is_answer`` and ``is_hard`` (First Try).

    Raises
    ------
    SpecError
        The settings are wrong, or these models cannot carry them out.
    """

    def __init__(
        self,
        model: Backend,
        spec: ControllerSpec | Mapping[str, Any] | str,
        *,
        vocabulary: RouterVocabulary | None = None,
        second: Backend | None = None,
        second_vocabulary: RouterVocabulary | None = None,
        scorers: Mapping[str, Callable[..., Any]] | None = None,
    ) -> None:
        self.spec = parse_controller(spec)
        self.backends: dict[Role, Backend] = {"large": model}
        self.vocabularies: dict[Role, RouterVocabulary | None] = {"large": vocabulary}
        if second is not None:
            self.backends = {"small": second, "large": model}
            self.vocabularies = {"small": second_vocabulary, "large": vocabulary}
        self.scorers = dict(scorers or {})
        shared = second is None or (
            vocabulary is not None
            and second_vocabulary is not None
            and same_vocabulary(vocabulary, second_vocabulary)
        )
        self.handover: Literal["ids", "text"] = (
            "ids" if shared and vocabulary is not None else "text"
        )
        self.models = {
            role: Model(role, backend, self.vocabularies[role], self._ends(role))
            for role, backend in self.backends.items()
        }
        self._check(self.spec)

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
        spec: ControllerSpec | None = None,
    ) -> Steered:
        """Write one text.

        Parameters
        ----------
        prompt
            Ids (text for a backend without tokenizer), or one for each model where they differ.
        max_tokens
            Of the text that is returned, and of each line that is not.
        emit, watch
            Are given text and ids as soon as they are certain; for methods that choose between
            lines that is at the end.
        arguments
            A decoding spec for servers that carry it out, as in their own requests.
        spec
            Of this request alone (:meth:`steering`).

        Raises
        ------
        BackendError
            The model does not answer.
        """
        chosen = spec or self.spec
        prompts: dict[Role, Context] = (
            dict(prompt) if isinstance(prompt, Mapping) else dict.fromkeys(self.models, prompt)
        )
        self._check_prompt(prompts["large"])
        name = session or uuid.uuid4().hex
        how = sampling or Sampling()
        desk = Desk(chosen, name, self.models, how, arguments or {})
        desk.notes["scorers"] = self.scorers
        thinks = leaves_thinking(chosen, prompts["large"], self.vocabularies["large"])
        mark = desk.tree.add("line", None)
        page = Page(
            desk, prompts, session=name, sampling=how, mark=mark, max_tokens=max_tokens,
            thinks=thinks, outlet=Outlet(emit, watch),
        )  # fmt: skip
        try:
            await self._learn(chosen)
            await chosen.method().run(page)
        finally:
            await desk.close()
        page.flush()
        return self._result(page, desk, chosen)

    async def _learn(self, spec: ControllerSpec) -> None:
        """Have servers tell what they can, where a method makes use of it.

        On which scale their values are: where one does not tell, they count as raw, the default.
        Whether they end calls in the step: where one does not tell, its largest entries are read.
        """
        policy = spec.policy
        wanted = {"log_prob_scale": policy.reads_warped, "learn_trips": policy.trips}
        for backend in self.backends.values():
            for name, is_wanted in wanted.items():
                ask = getattr(backend, name, None)
                if is_wanted and ask is not None:
                    with suppress(BackendError):
                        await ask()

    def steering(self, policy: Mapping[str, Any] | str) -> ControllerSpec:
        """This controller's spec with another method, within the same bounds and budgets.

        Raises
        ------
        SpecError
            There is no such method, these models cannot carry it out, or it goes beyond a bound.
        """
        spec = parse_controller({**dict(self.spec), "policy": policy})
        self._check(spec)
        return spec

    async def close(self) -> None:
        """No request will follow."""
        for backend in self.backends.values():
            await backend.close()

    def _result(self, page: Page, desk: Desk, spec: ControllerSpec) -> Steered:
        finish: FinishReason = "stop" if page.state == "eos" else "length"
        if spec.think_end is None and page.why not in ("", "full", "budget"):
            # A text without thinking that was stopped.
            finish = "stop"
        kept: dict[Role, int] = {}
        for atom in page.atoms:
            if not atom.injected:
                atom.mark.kept += atom.tokens
                role: Role = "large" if atom.writer is None else atom.writer
                kept[role] = kept.get(role, 0) + atom.tokens
        vocabulary = self.vocabularies["large"]
        visible = page.visible
        ids = [atom.token for atom in visible if atom.token is not None]
        canonical = None if vocabulary is None else is_canonical(vocabulary, ids)
        nodes = desk.tree.nodes()
        trace = SteerTrace(
            spec=spec, finish_reason=finish, stopped=page.why, exact=vocabulary is not None,
            canonical=canonical, usage=desk.usage(kept), injected_tokens=desk.injected,
            probes=desk.probes, forks=desk.forks, vote=desk.notes.get("vote", {}), nodes=nodes,
            dropped_nodes=len(desk.tree.marks) - len(nodes),
        )  # fmt: skip
        report(trace)
        answer = read(page.answer, spec.read_answer)
        return Steered(
            ids,
            page.text,
            finish,
            sum(atom.tokens for atom in visible),
            trace,
            answer,
            tuple(desk.notes.get("lines", ())),
        )

    def _ends(self, role: Role) -> StepEnds:
        vocabulary, think_end = self.vocabularies[role], self.spec.think_end
        if vocabulary is None or think_end is None or role != "large":
            return StepEnds("", think_end, vocabulary)
        marker = marker_of(vocabulary.tokenizer, think_end, default=think_end, field="think_end")
        if marker.text is not None:
            # Made now: the event loop must not wait for it.
            vocabulary.content(0)
        return StepEnds("", think_end, vocabulary, marker)

    def _check(self, spec: ControllerSpec) -> None:
        spec.check_limits()
        policy = spec.policy
        field = f"policy.{policy.policy}"
        vocabulary = self.vocabularies["large"]
        if policy.needs_ids is not None and vocabulary is None:
            allowed = f"a server by token ids (vLLM or SGLang), because {policy.needs_ids}"
            raise SpecError.of(field, "a server that takes and gives text", allowed)
        why = policy.second()
        if why is not None and "small" not in self.backends:
            raise SpecError.of(field, "one model", f"a second one: {why}")
        if policy.needs_shared is not None and self.handover != "ids":
            allowed = f"two models of one vocabulary, because {policy.needs_shared}"
            raise SpecError.of(field, "two vocabularies", allowed)
        for name in policy.scorers():
            if name not in self.scorers:
                allowed = "a function that the caller gives: Controller(..., scorers={name: ...})"
                raise SpecError.of(f"{field}.scorers", f"no {name}", allowed)
        equality(spec.equality)
        texts = {f"policy.{name}": text for name, text in policy.texts().items()}
        texts["closing"] = spec.closing_text
        for name, text in texts.items():
            if text and vocabulary is not None:
                encode_text(vocabulary.tokenizer, text, name)

    def _check_prompt(self, prompt: Context) -> None:
        vocabulary = self.vocabularies["large"]
        if isinstance(prompt, str) != (vocabulary is None):
            got, allowed = ("text", "ids") if isinstance(prompt, str) else ("ids", "text")
            raise SpecError.of("prompt", got, f"{allowed}, which this model is given")
        if not prompt:
            raise SpecError.of("prompt", "nothing", "at least one token")
