"""Where two traces part, and a trace as a table."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from tokenlens.trace.lines import Recording
from tokenlens.trace.records import Trace, TraceStep


class Difference(NamedTuple):
    """A position at which two traces are not the same, and in which fields."""

    position: int
    fields: tuple[str, ...]
    left: TraceStep | None
    right: TraceStep | None


def differences(left: Trace, right: Trace, tolerance: float = 1e-4) -> list[Difference]:
    """Steps that differ, aligned by position.

    Parameters
    ----------
    tolerance
        Of entropies, probabilities, weights and edits; everything else must be equal.
    """
    a = {step.position: step for step in left.steps}
    b = {step.position: step for step in right.steps}
    found = []
    for position in sorted(a.keys() | b.keys()):
        one, other = a.get(position), b.get(position)
        if one is None or other is None:
            found.append(Difference(position, ("missing",), one, other))
        elif fields := _fields(one, other, tolerance):
            found.append(Difference(position, fields, one, other))
    return found


def _fields(one: TraceStep, other: TraceStep, tolerance: float) -> tuple[str, ...]:
    exact = ("phase", "token", "latent", "forced", "valid", "switch")
    fields = [name for name in exact if getattr(one, name) != getattr(other, name)]
    for name in ("entropy", "max_probability"):
        if abs(getattr(one, name) - getattr(other, name)) > tolerance:
            fields.append(name)
    if _differ(dict(one.entries), dict(other.entries), tolerance):
        fields.append("entries")
    if _differ(one.edits or {}, other.edits or {}, tolerance):
        fields.append("edits")
    return tuple(fields)


def _differ(one: Mapping[Any, float], other: Mapping[Any, float], tolerance: float) -> bool:
    keys = one.keys() | other.keys()
    return any(abs(one.get(key, 0.0) - other.get(key, 0.0)) > tolerance for key in keys)


def csv_rows(recording: Recording) -> list[list[object]]:
    """A header and one row a step, for a table; entries as ``id:weight`` joined by spaces."""
    names = [name for name in TraceStep.model_fields if name not in ("entries", "edits")]
    rows: list[list[object]] = [[*names, "text", "entries", "edits"]]
    for index, step in enumerate(recording.trace.steps):
        rows.append(
            [
                *(getattr(step, name) for name in names),
                recording.step_text(index),
                " ".join(f"{token}:{weight:.6g}" for token, weight in step.entries),
                " ".join(f"{name}:{amount:.6g}" for name, amount in (step.edits or {}).items()),
            ]
        )
    return rows
