"""Whether what a trace says was fed is what its engine fed: the same once more, in one forward.

A trace holds what every step was fed: a token's own embedding, or ids and weights of a mixture. One
uncached forward pass over exactly that gives the logits that the engine must have had, whichever
engine it was, and the core says what it would have recorded of them. A second pass, which feeds the
visible tokens instead, says how far off an engine would be that lost the mixtures. Judged by what
was recorded and not by tokens, which soft decoding may change wherever two engines round apart.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import LogitsProcessor

from tokenlens.errors import UnsupportedError
from tokenlens.hf.given import tokenizer_of
from tokenlens.hf.replay import Replay
from tokenlens.spec import NEEDS, Tokenizer, needs_of
from tokenlens.trace import Trace, TraceStep

TOLERANCE = 1e-4
"""Between engines in float32: nats of entropy, and probability."""

KEPT = 0.999
"""Weight that a concept token has at least where none of its entries was left out."""

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
    replay = Replay(model, tokenizer_of(tokenizer), trace, prompt, inputs, logits_processor)
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
        fed = ", ".join(NEEDS[need] for need in needs)
        raise UnsupportedError(
            f"trace: got a spec that feeds {fed}; allowed: concept tokens and"
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
