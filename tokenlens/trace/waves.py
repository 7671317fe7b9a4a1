"""A schedule's wave at the steps of a trace, for showing it: the spec's arithmetic in plain Python.

Engines decode with ``tokenlens.methods.waves``; a test holds the two together. Where a step says
what was added to its logits, that is shown instead.
"""

import math
from collections.abc import Sequence

from tokenlens.spec import DecodingSpec
from tokenlens.spec.schedules import Schedule
from tokenlens.trace.records import TraceStep


def wave(config: Schedule, position: int) -> float:
    """The bias at a position, in logits."""
    cycle = math.fmod(position + config.shift * config.period, config.period) / config.period
    cycle += cycle < 0
    shapes = {
        "triangular": 1 - abs((cycle + 0.25) % 1 * 4 - 2),
        "cosine": math.cos(2 * math.pi * (cycle - 0.25)),
        "square": 1.0 if cycle < 0.5 else -1.0,
        "constant": 1.0,
    }
    return config.amplitude * shapes[config.wave]


def edits_of(spec: DecodingSpec, steps: Sequence[TraceStep]) -> dict[str, list[float | None]]:
    """For each method that edits by an amount, the amount at each step; ``None`` where none."""
    found: dict[str, list[float | None]] = {}
    for index, step in enumerate(steps):
        for name, amount in (step.edits or {}).items():
            found.setdefault(name, [None] * len(steps))[index] = amount
    for config in spec.methods:
        if isinstance(config, Schedule) and config.method not in found:
            found[config.method] = _planned(config, steps)
    return found


def _planned(config: Schedule, steps: Sequence[TraceStep]) -> list[float | None]:
    amounts: list[float | None] = []
    counted = 0
    for step in steps:
        thinking = step.phase == "thinking"
        inside = not config.windows or any(a <= counted < b for a, b in config.windows)
        amounts.append(wave(config, counted) if thinking and inside else None)
        counted += thinking or config.counted == "output"
    return amounts
