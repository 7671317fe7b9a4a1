"""Schedules of a spec over the position, as a PNG and in the terminal."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.text import Text

from tokenlens.errors import SpecError
from tokenlens.methods._shared.waves import WAVES, schedule
from tokenlens.methods.alpha_one.step import slow_probability
from tokenlens.methods.cyclic_reflex.config import Schedule
from tokenlens.methods.thinking_budget.step import ramp
from tokenlens.spec import AlphaOne, DecodingSpec, ThinkingBudget, Tip
from tokenlens.spec.registry import METHOD_CONFIGS, AnyMethod
from tokenlens.trace.files import replacing

HEIGHT, WIDTH = 13, 60
MAX_POINTS = 20_000


class _Curve(NamedTuple):
    """What one method does at each position."""

    label: str
    # [num_positions] float64
    values: torch.Tensor


def drawn() -> list[str]:
    """The methods that have a schedule."""
    kinds = (Schedule, Tip, ThinkingBudget, AlphaOne)
    return [name for name, config in METHOD_CONFIGS.items() if issubclass(config, kinds)]


def curves(spec: DecodingSpec, positions: torch.Tensor) -> list[_Curve]:
    """A curve for each method that has a schedule, over ``[num_positions]`` int64."""
    return list(_curves(spec, positions))


def _curves(spec: DecodingSpec, positions: torch.Tensor) -> Iterator[_Curve]:
    def same(value: float, dtype: torch.dtype = torch.float64) -> torch.Tensor:
        return torch.full_like(positions, 0).to(dtype) + value

    for config in spec.methods:
        if isinstance(config, Schedule):
            values = schedule(
                same(list(WAVES).index(config.wave), torch.int64),
                same(config.amplitude),
                same(config.period),
                same(config.shift),
                positions,
            )
            if config.windows:
                inside = [(a <= positions) & (positions < b) for a, b in config.windows]
                values = torch.where(torch.stack(inside).any(0), values, 0.0)
            yield _Curve(f"{config.method}: bias of {', '.join(config.words)} (logits)", values)
        elif isinstance(config, Tip):
            values = torch.where(positions < config.duration, -config.penalty, 0.0).double()
            yield _Curve(f"tip: bias of {', '.join(config.words)} in the first thought", values)
        elif isinstance(config, ThinkingBudget):
            start, stop = round(config.budget * (1 - config.ramp)), config.budget
            rising = ramp(positions, same(start, torch.int64), same(stop, torch.int64))
            bonus = rising * config.ramp_strength * (config.ramp > 0)
            yield _Curve(f"thinking_budget: bias of the end, forced from {stop} (logits)", bonus)
        elif isinstance(config, AlphaOne):
            moment = same(config.alpha * config.average_thinking).ceil().long()
            yield _Curve("alpha_one: probability of the text", slow_probability(positions, moment))


def length_of(spec: DecodingSpec) -> int:
    """Positions that show a spec's schedules whole."""
    lengths: dict[type[AnyMethod], Callable[..., float]] = {
        Tip: lambda c: 1.5 * c.duration,
        ThinkingBudget: lambda c: 1.25 * c.budget,
        AlphaOne: lambda c: 1.25 * c.alpha * c.average_thinking,
    }
    found = [10.0]
    for config in spec.methods:
        if isinstance(config, Schedule):
            windows = 1.25 * max((stop for _, stop in config.windows), default=0)
            found.append(windows if config.wave == "constant" and windows else 2 * config.period)
        elif type(config) in lengths:
            found.append(lengths[type(config)](config))
    return int(max(found))


def terminal(curve: _Curve, length: int) -> Text:
    """A curve as text, one mark a column."""
    picked = curve.values[torch.linspace(0, len(curve.values) - 1, WIDTH).round().long()]
    low, high = min(float(picked.min()), 0.0), max(float(picked.max()), 0.0)
    span = (high - low) or 1.0
    place = ((high - picked) / span * (HEIGHT - 1)).round().long().tolist()
    zero = round(high / span * (HEIGHT - 1))
    text = Text(f"{curve.label}\n", style="bold")
    for line in range(HEIGHT):
        value = high - span * line / (HEIGHT - 1)
        marks = "".join("●" if p == line else "─" if line == zero else " " for p in place)
        text.append(f"{value:8.2f} │", style="dim")
        text.append(marks.rstrip() + "\n", style="cyan")
    text.append(" " * 9 + "└" + f"0{length:>{WIDTH - 1}} tokens\n", style="dim")
    return text


def run(console: Console, spec: DecodingSpec, tokens: int | None, out: Path) -> None:
    """Draw a spec's schedules.

    Raises
    ------
    SpecError
        No method of the spec has a schedule.
    """
    length = tokens or length_of(spec)
    positions = torch.linspace(0, length, min(length, MAX_POINTS) + 1).long()
    found = curves(spec, positions)
    if not found:
        names = [config.method for config in spec.methods]
        raise SpecError.of("methods", names, f"one that has a schedule: {', '.join(drawn())}")
    for curve in found:
        console.print(terminal(curve, length))
    _png(found, positions, out)
    console.print(f"written to {out}", highlight=False)


def _png(found: list[_Curve], positions: torch.Tensor, out: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 2.6 * len(found)), layout="constrained")
    axes = figure.subplots(len(found), sharex=True, squeeze=False)[:, 0]
    for axis, curve in zip(axes, found):
        axis.axhline(0, color="0.8", linewidth=1)
        axis.plot(positions.numpy(), curve.values.numpy())
        axis.set_title(curve.label, fontsize=9, loc="left")
    axes[-1].set_xlabel("tokens")
    with replacing(out) as file:
        figure.savefig(file, format="png", dpi=120)
