"""Plots of evaluations with matplotlib: accuracy against what it costs."""

from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter
from typing import TYPE_CHECKING, NamedTuple

from tokenlens.evaluation.cost import Curve
from tokenlens.evaluation.results import Row
from tokenlens.evaluation.statistics import Estimate, wilson
from tokenlens.trace.plots import figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SPEC, CONTROL = "#7c3aed", "0.55"


class Point(NamedTuple):
    """One way to decode in a plot."""

    label: str
    x: Estimate
    accuracy: Estimate
    is_control: bool = False


def against_tokens(rows: Sequence[Row], curves: Mapping[str, Curve] | None = None) -> "Figure":
    """Accuracy against tokens an answer, intervals of 95 % on both.

    The curve of an arm leads to its point, as the limit on an answer grows.
    """
    points = [Point(row.arm, row.tokens, row.accuracy, row.is_control) for row in rows]
    drawing = accuracy_plot(points, "tokens an answer")
    for point in points if curves else ():
        assert curves is not None
        costs, accuracies = curves[point.label].points()
        colour = CONTROL if point.is_control else SPEC
        drawing.axes[0].step(costs, accuracies, where="post", color=colour, lw=0.6, alpha=0.6)
    return drawing


def against_latent_share(rows: Sequence[Row]) -> "Figure":
    """Accuracy against the share of latent steps."""
    points = [
        Point(row.arm, exactly(row.latent_share), row.accuracy, row.is_control) for row in rows
    ]
    return accuracy_plot(points, "latent steps, share of all tokens", (-0.03, 1.03))


def against_share(rows: Iterable[Mapping[str, str]]) -> "Figure":
    """Accuracy of routers against their large model's share; a line for each policy.

    Chance and either model alone are controls: grey.

    Parameters
    ----------
    rows
        The table that ``benchmarks/routing.py`` writes: ``name``, ``setting``, ``problems``,
        ``accuracy`` and ``large_tokens``, both in per cent.
    """
    policies: dict[str, list[tuple[float, Estimate]]] = {}
    for row in rows:
        count = int(row["problems"])
        accuracy = wilson(round(float(row["accuracy"]) / 100 * count), count)
        policies.setdefault(row["name"], []).append((float(row["large_tokens"]) / 100, accuracy))
    drawing = figure(7.0, 4.5)
    axes = drawing.subplots()
    for name, found in policies.items():
        shares, accuracies = zip(*sorted(found, key=itemgetter(0)), strict=True)
        is_control = name == "random" or name.endswith(" alone")
        axes.errorbar(
            shares,
            [y.mean for y in accuracies],
            yerr=_bars(accuracies),
            marker={"large alone": "^", "small alone": "v"}.get(name, "o"),
            color=CONTROL if is_control else None,
            elinewidth=0.7,
            label=name,
        )
    axes.set(xlabel="share of the large model", ylabel="accuracy, 95 % interval")
    axes.legend(fontsize="small")
    return drawing


def accuracy_plot(
    points: Sequence[Point], label: str, limits: tuple[float, float] | None = None
) -> "Figure":
    """Points with their intervals; specs are filled, controls hollow; numbers are the legend's."""
    drawing = figure(9.0, 4.0)
    axes = drawing.subplots()
    for number, point in enumerate(points, 1):
        x, y = point.x, point.accuracy
        colour = CONTROL if point.is_control else SPEC
        axes.errorbar(
            x.mean,
            y.mean,
            xerr=_bars([x]),
            yerr=_bars([y]),
            fmt="o",
            mfc="none" if point.is_control else colour,
            color=colour,
            elinewidth=0.7,
            label=f"{number}  {point.label}",
        )
        axes.annotate(
            str(number),
            (x.mean, y.mean),
            textcoords="offset points",
            xytext=(5, 4),
            fontsize="small",
        )
    axes.set(xlabel=label, ylabel="accuracy, 95 % interval", ylim=(-0.02, 1.02), xlim=limits)
    drawing.legend(loc="outside right upper", fontsize="x-small")
    return drawing


def _bars(estimates: Sequence[Estimate]) -> list[list[float]]:
    """Lengths of the error bars beneath and above the means."""
    return [
        [max(0.0, one.mean - one.low) for one in estimates],
        [max(0.0, one.high - one.mean) for one in estimates],
    ]


def exactly(value: float) -> Estimate:
    """A figure that has no interval."""
    return Estimate(value, value, value)
