"""Whether two engines' traces of one request are the same, up to the engine's name."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from conformance_models import ROUNDING, generated, nearby
from conformance_table import COMPARED, EVERY, MARKERS

TOLERANCE = 1e-4
"""Of entropies, probabilities and weights, float32; everything else is equal."""

CHANGE = 3 * ROUNDING
"""A relative change of a model's parameters. Mixtures are fed back, and small models amplify: what
this does to a request's values says how far they may be from another engine's, where that is more
than ``TOLERANCE``."""

TRACED = {
    "latent": "soft-1",
    "cold-stopped": "cold-1",
    "gated": "lead-0",
    "words": "cyclic-reflex-2",
}
"""Rows of the reasoner that every engine traces, and that are held to ``TOLERANCE`` whatever the
changed models do with them; none of them carries rounding far."""


class Reference(NamedTuple):
    """A trace as plain data, and how far another engine's values may be away.

    And the log-probabilities of its tokens by the model alone: what is fed, not what is forced,
    decides about those.
    """

    trace: dict[str, Any]
    tolerance: float
    logprobs: list[float]
    logprob_tolerance: float


def reference_traces(
    path: str, tokenizer: Any = None, markers: Any = MARKERS, scenarios: Any = EVERY
) -> dict[str, Reference]:
    """What Hugging Face records of each greedy scenario that has a spec: every step.

    Each is made by the model and by some whose parameters are all a little different.
    """
    from tokenlens.hf import traces

    traced = [one for one in scenarios if one.greedy and one.methods is not None]
    found = []
    for model in nearby(path, CHANGE):
        outputs = [generated(model, tokenizer, one, markers, "full") for one in traced]
        dumped = [traces(one.kwargs)[0].model_dump(mode="json") for one in outputs]
        found.append([(trace, one.logprobs) for trace, one in zip(dumped, outputs)])
    references = {}
    for scenario, (one, logprobs), *others in zip(traced, *found):
        apart = [place for other, _ in others for place in _distances(one, other, "")]
        wrong = [place for place, distance in apart if math.isnan(distance)]
        assert not wrong, f"{scenario.name}: chaotic, choose another prompt: {wrong[0]}"
        carried = max((distance for _, distance in apart), default=0.0)
        tolerance = max(TOLERANCE, carried)
        if scenario.name in TRACED.values():
            assert carried <= 2 * TOLERANCE, f"{scenario.name}: carries rounding too far"
            tolerance = TOLERANCE
        away = [abs(left - right) for _, other in others for left, right in zip(logprobs, other)]
        references[scenario.name] = Reference(one, tolerance, logprobs, max(TOLERANCE, *away))
    return references


def vector_references(checkpoints: dict[str, str]) -> dict[str, dict[str, Reference]]:
    """The references of rows that are fed or added vectors, by the random model's name."""
    rows = [one for one in EVERY if one.name in COMPARED]
    names = ("qwen3", "gemma")
    return {name: reference_traces(checkpoints[name], None, MARKERS, rows) for name in names}


def trace_differences(reference: Reference, other: dict[str, Any]) -> list[str]:
    """Every place at which a trace is not the reference's.

    Its engine's name is another, and so is who else was live, which says whether noise was shared,
    and where its markers were found: some jobs' engines say them.

    Returns
    -------
    list of str
        ``steps[3].entries[0][1]: 0.5 and 0.7``; empty if they are equal.
    """
    skip = {"engine": None, "same_noise": None}
    places = _distances({**reference.trace, **skip}, {**other, **skip}, "")
    # Written so that a NaN is too far away.
    return [
        place
        for place, apart in places
        if not (apart <= reference.tolerance or place.startswith("spec.phase.found: "))
    ]


def logprob_differences(reference: Reference, other: list[float]) -> list[str]:
    """Every token whose log-probability is not the reference's."""
    pairs = list(zip(reference.logprobs, other, strict=True))
    # Written so that a NaN is too far away.
    return [
        f"logprobs[{place}]: {one} and {two}"
        for place, (one, two) in enumerate(pairs)
        if not abs(one - two) <= reference.logprob_tolerance
    ]


def _distances(one: Any, other: Any, path: str) -> Iterator[tuple[str, float]]:
    """Places that are not equal, and how far apart: NaN for what is no number."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted(one.keys() | other.keys()):
            yield from _distances(one.get(key, "-"), other.get(key, "-"), f"{path}.{key}")
    elif path.endswith(".entries"):
        # Neighbours of nearly the same weight may stand in either order, and either may be cut.
        left, right = (dict(map(tuple, entries)) for entries in (one, other))
        for token in sorted(left.keys() | right.keys()):
            yield from _distances(left.get(token, 0.0), right.get(token, 0.0), f"{path}[{token}]")
    elif isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        if len(one) != len(other):
            yield f"{path[1:]}: {len(one)} and {len(other)} items", float("nan")
        for index, (left, right) in enumerate(zip(one, other)):
            yield from _distances(left, right, f"{path}[{index}]")
    elif one != other:
        both = isinstance(one, float) and isinstance(other, float)
        yield f"{path[1:]}: {one} and {other}", abs(one - other) if both else float("nan")
