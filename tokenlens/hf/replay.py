"""Whether what a trace says was fed is what its engine fed: the same once more, in one forward.

A trace holds what every step was fed: a token's own embedding, or ids and weights of a mixture. One
uncached forward pass over exactly that gives the logits that the engine must have had, whichever
engine it was, and the core says what it would have recorded of them. A second pass, which feeds the
visible tokens instead, says how far off an engine would be that lost the mixtures. Judged by what
was recorded and not by tokens, which soft decoding may change wherever two engines round apart.
"""

import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LogitsProcessor

from tokenlens.core import Core, bind
from tokenlens.core.recorder import Recorder
from tokenlens.core.request import possible_ends
from tokenlens.hf.embedding import InputEmbedding
from tokenlens.hf.given import ids_of, tokenizer_of
from tokenlens.hf.refusals import ProtocolError, UnsupportedError
from tokenlens.methods import METHODS
from tokenlens.spec import Tokenizer, needs_of
from tokenlens.spec.texts import holes, vocabulary_size
from tokenlens.trace import Trace, TraceStep

TOLERANCE = 1e-4
"""Between engines in float32: nats of entropy, and probability."""

LOGIT_BYTES = 1 << 28
"""Logits that are held at a time; more steps than that take several passes."""

KEPT = 0.999
"""Weight that a concept token has at least where none of its entries was left out."""

Entries = Sequence[tuple[int, float]]

ALIKE = ("phase", "latent", "forced", "valid")
"""What the core must decide as the trace says; signals and weights are held to a tolerance."""


@dataclass(frozen=True)
class Apart:
    """How far recorded steps are from replayed ones.

    Attributes
    ----------
    largest, mean
        Over the steps: the larger one of the differences of entropy, in nats, and of the largest
        probability.
    at
        Position of the largest.
    """

    largest: float
    mean: float
    at: int


@dataclass(frozen=True)
class Verification:
    """What the replays of one trace found.

    Attributes
    ----------
    steps, mixtures
        Steps that were replayed, and mixtures among what was fed to them.
    traced
        How far the recorded steps are from a replay of what the trace says was fed.
    tokens
        The same over the steps behind a mixture, with visible tokens fed in place of mixtures.
        ``None`` where the trace has no mixture that anything follows.
    weights
        The largest difference of a concept token's weights, over steps with the same entries.
    parted
        Positions and names of what the core decides otherwise, on the replayed logits, than the
        trace says.
    tolerance
        What ``traced`` is held to.
    """

    steps: int
    mixtures: int
    traced: Apart
    tokens: Apart | None
    weights: float
    parted: tuple[tuple[int, str], ...]
    tolerance: float

    @property
    def holds(self) -> bool:
        """What was fed is what the trace says, as far as its signals tell."""
        return self.traced.largest <= self.tolerance and not self.parted

    @property
    def tells(self) -> bool:
        """The trace would look otherwise had its mixtures been lost; true where it has none."""
        return self.tokens is None or self.tokens.largest > self.tolerance

    @property
    def verdict(self) -> str:
        """In words."""
        if not self.holds:
            return "not what the trace says"
        if not self.tells:
            return "cannot be told from tokens"
        return "as the trace says"


def verify_trace(
    model: Any,
    tokenizer: Tokenizer | None,
    trace: Trace,
    *,
    prompt_ids: Sequence[int] | None = None,
    inputs: Mapping[str, Any] | None = None,
    logits_processor: Sequence[LogitsProcessor] = (),
    tolerance: float = TOLERANCE,
) -> Verification:
    """Replay a trace, of any engine, through a model of transformers.

    Parameters
    ----------
    model
        The model that the trace is of, in float32 for a tolerance as small as the default.
    tokenizer
        Its tokenizer or processor; ``None`` where the spec gives its think markers as token ids.
    trace
        With its steps (``trace: {level: full}``).
    prompt_ids
        The prompt's tokens, where the trace does not have them.
    inputs
        What the forward pass needs beside token ids: ``pixel_values``, ``image_grid_thw``, …
    logits_processor
        Whatever changed the logits before tokenlens saw them (a penalty of the engine's).
    tolerance
        For entropies in nats and probabilities.

    Raises
    ------
    UnsupportedError
        The trace does not hold all that was fed. Says what is missing.
    ProtocolError
        The forward pass does not look its tokens up in the model's input embedding.

    Examples
    --------
    >>> verify_trace(model, tokenizer, traces(kwargs)[0]).verdict  # doctest: +SKIP
    'as the trace says'
    """
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    prompt = list(trace.prompt_ids if prompt_ids is None else prompt_ids)
    _refuse(trace, prompt)
    replay = _Replay(model, tokenizer_of(tokenizer), trace, prompt, inputs, logits_processor)
    mixed = {
        step.position: step.entries for step in trace.steps[:-1] if step.latent and step.entries
    }
    found, tells = replay.run(mixed), None
    if mixed:
        first = min(mixed)
        behind = [step for step in trace.steps if step.position > first]
        tells = _apart(behind, replay.run({})[-len(behind) :])
    return Verification(
        steps=len(found),
        mixtures=len(mixed),
        traced=_apart(trace.steps, found),
        tokens=tells,
        weights=_weights_apart(trace.steps, found),
        parted=tuple(_parted(trace.steps, found)),
        tolerance=tolerance,
    )


def _refuse(trace: Trace, prompt: Sequence[int]) -> None:
    """Refuse a trace that does not say all that was fed."""
    if not trace.steps:
        raise UnsupportedError(
            "trace: got no steps; allowed: a trace that was recorded step by step. Ask for it in"
            ' the spec: "trace": {"level": "full"}'
        )
    needs = needs_of(trace.spec)
    if needs:
        raise UnsupportedError(
            f"trace: got a spec that feeds {', '.join(sorted(needs))}; allowed: concept tokens and"
            " tokens. A trace holds ids and weights, and no vectors of an engine."
        )
    first = trace.steps[0].position
    if len(prompt) != first:
        given = f"got {len(prompt)} tokens" if prompt else "got none"
        raise UnsupportedError(
            f"prompt_ids: {given}; allowed: the {first} tokens of the prompt, which are in front of"
            " the trace's first step. Traces have them from schema 2 on, unless the prompt is very"
            " long or came as embeddings; give them: prompt_ids=[...], or --prompt-ids FILE"
        )
    places = [step.position for step in trace.steps]
    if places != list(range(first, first + len(places))):
        raise UnsupportedError("trace: got steps with gaps; allowed: every step, in order")
    most = trace.spec.trace.most_entries(latent=True)
    for step in trace.steps:
        if step.latent and len(step.entries) >= most and sum(w for _, w in step.entries) < KEPT:
            raise UnsupportedError(
                f"trace.max_entries: got {most}, so that part of the concept token at position"
                f" {step.position} is missing; allowed: at least as many as the method's entries"
                " and anchors. Record it again without trace.max_entries"
            )


class _Replay:
    """Forward passes over one trace, and what the core makes of their logits."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        trace: Trace,
        prompt: Sequence[int],
        inputs: Mapping[str, Any] | None,
        processors: Sequence[LogitsProcessor],
    ) -> None:
        self._model, self._trace, self._prompt = model, trace, list(prompt)
        self._inputs = dict(inputs or {})
        self._edits: list[Any] = list(processors)
        config = model.config.get_text_config()
        width = int(config.vocab_size)
        self._tokens = [step.token for step in trace.steps]
        fed = (token for step in trace.steps for token, _ in step.entries)
        wrong = [one for one in (*prompt, *self._tokens, *fed) if not 0 <= one < width]
        if wrong:
            raise UnsupportedError(
                f"trace: got token {wrong[0]}; allowed: 0 to {width - 1} with this model. Give the"
                " model that the trace was recorded with"
            )
        self._vocab_size = vocabulary_size(tokenizer, width)
        self._holes = holes(tokenizer, self._vocab_size)
        ends = [
            getattr(one, "eos_token_id", None)
            for one in (getattr(model, "generation_config", None), config)
        ]
        eos = possible_ends([i for found in ends for i in ids_of(found)], self._vocab_size)
        self._request = bind(
            trace.spec,
            methods=METHODS,
            tokenizer=tokenizer,
            vocab_size=self._vocab_size,
            eos_ids=eos,
            turn_ends=eos,
        ).sample(trace.sample)
        self._embedding = InputEmbedding(model.get_input_embeddings())
        self._embedding.probe()

    @torch.no_grad()
    def run(self, mixed: Mapping[int, Entries]) -> list[TraceStep]:
        """What the core records if these positions are fed mixtures, and all others tokens."""
        core: Core | None = None
        ids = torch.tensor([[*self._prompt, *self._tokens]], device=self._device)
        for place, logits in enumerate(self._logits(ids[:, :-1], mixed)):
            scores = logits[None].float()
            for edit in self._edits:
                scores = edit(ids[:, : len(self._prompt) + place], scores)
            if core is None:
                core = Core(
                    methods=METHODS,
                    max_slots=1,
                    vocab_size=self._vocab_size,
                    holes=self._holes,
                    device=scores.device,
                    engine="a replay",
                )
                core.add(0, self._request, self._prompt, len(self._prompt))
                slots = torch.zeros(1, dtype=torch.int64, device=scores.device)
                going = torch.ones(1, dtype=torch.bool, device=scores.device)
                recorder = Recorder(core, [self._request], "replay")
            core.step(scores, slots)
            token = ids[0, len(self._prompt) + place].to(scores.device)
            recorder.append(core.commit(token[None], slots, going))
        found = recorder.traces()[0]
        assert found is not None
        return list(found.steps)

    @property
    def _device(self) -> torch.device:
        weight = getattr(self._embedding.module, "weight", None)
        if isinstance(weight, Tensor) and not weight.is_meta:
            return weight.device
        found: torch.device = self._model.device
        return found

    def _logits(self, ids: Tensor, mixed: Mapping[int, Entries]) -> Iterator[Tensor]:
        """``[vocab]`` logits behind the prompt's last token and behind each that follows."""
        first, last = len(self._prompt) - 1, ids.shape[1]
        width = int(self._model.config.get_text_config().vocab_size)
        keeps = "logits_to_keep" in inspect.signature(self._model.forward).parameters
        size = max(1, LOGIT_BYTES // (4 * width)) if keeps else last
        for start in range(first, last, size):
            keep = torch.arange(start, min(start + size, last), device=ids.device)
            kept = {"logits_to_keep": keep} if keeps else {}
            with _resting(self._model), self._feeding(mixed, last):
                out = self._model(input_ids=ids, use_cache=False, **self._inputs, **kept).logits[0]
            yield from out if keeps else out[first:]

    @contextmanager
    def _feeding(self, mixed: Mapping[int, Entries], length: int) -> Iterator[None]:
        """Put mixtures into the next look-up of all tokens."""
        rows = self._mixtures(mixed)
        fed = False

        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            nonlocal fed
            # Other calls ask for a placeholder's row.
            if fed or not isinstance(output, Tensor) or output.shape[:2] != (1, length):
                return None
            fed = True
            if rows is None:
                return None
            place = torch.tensor(list(mixed), device=output.device)
            return output.index_copy(1, place, rows.to(output.device, output.dtype)[None])

        handle = self._embedding.module.register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()
        if not fed:
            raise ProtocolError(
                "the forward pass did not look its tokens up in the model's input embedding, so"
                " that nothing could be fed to it. Give the model as transformers loads it."
            )

    def _mixtures(self, mixed: Mapping[int, Entries]) -> Tensor | None:
        """``[mixtures, hidden]``."""
        if not mixed:
            return None
        width = max(map(len, mixed.values()))
        ids = torch.zeros(len(mixed), width, dtype=torch.int64, device=self._device)
        weights = torch.zeros(len(mixed), width, device=self._device)
        for row, entries in enumerate(mixed.values()):
            ids[row] = entries[0][0]
            ids[row, : len(entries)] = torch.tensor([token for token, _ in entries])
            weights[row, : len(entries)] = torch.tensor([weight for _, weight in entries])
        # As `core.next_input` writes them.
        return self._embedding.mix(ids, weights / weights.sum(dim=1, keepdim=True))


@contextmanager
def _resting(model: nn.Module) -> Iterator[None]:
    """In evaluation mode, and without what models that see remember of the call before."""
    before = [
        (module, module.rope_deltas)
        for module in model.modules()
        if isinstance(module.__dict__.get("rope_deltas"), Tensor)
    ]
    training = [module for module in model.modules() if module.training]
    for module, _ in before:
        module.rope_deltas = None  # type: ignore[assignment]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
        for module, deltas in before:
            module.rope_deltas = deltas


def _apart(recorded: Sequence[TraceStep], replayed: Sequence[TraceStep]) -> Apart:
    """How far signals are apart; a number that is none is infinitely far."""
    distances = [
        max(
            abs(one.entropy - other.entropy),
            abs(one.max_probability - other.max_probability),
        )
        for one, other in zip(recorded, replayed, strict=True)
    ]
    distances = [one if math.isfinite(one) else math.inf for one in distances]
    largest = max(distances)
    at = recorded[distances.index(largest)].position
    return Apart(largest, sum(distances) / len(distances), at)


def _weights_apart(recorded: Sequence[TraceStep], replayed: Sequence[TraceStep]) -> float:
    """Between concept tokens of the same entries: others differ at the edge of a filter."""
    found = 0.0
    for one, other in zip(recorded, replayed):
        left, right = dict(one.entries), dict(other.entries)
        if one.latent and other.latent and left.keys() == right.keys():
            found = max(found, *(abs(left[token] - right[token]) for token in left))
    return found


def _parted(
    recorded: Sequence[TraceStep], replayed: Sequence[TraceStep]
) -> Iterator[tuple[int, str]]:
    """Where the core decides otherwise."""
    last = recorded[-1].position
    for one, other in zip(recorded, replayed):
        for name in ALIKE:
            # What ends a text in the engine may be known to the engine alone.
            if getattr(one, name) != getattr(other, name) and (name, one.position) != (
                "latent",
                last,
            ):
                yield one.position, name
