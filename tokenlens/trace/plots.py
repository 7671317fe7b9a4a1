"""Plots of traces with matplotlib. Each returns a figure; nothing is shown or saved by itself."""

from collections.abc import Iterator, Sequence
from io import StringIO
from typing import TYPE_CHECKING

from tokenlens.spec.base import StrictModel
from tokenlens.trace.lines import Recording

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LATENT, DISCRETE, MARK = "#7c3aed", "#0f766e", "#b45309"
WINDOW = 32
"""Steps that the latent share is a mean of."""


def figure(width: float = 8.0, height: float = 3.0) -> "Figure":
    """An empty figure that belongs to no window."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError(
            "plots need matplotlib: install tokenlens-decoding with its plot extra"
        ) from None
    return Figure(figsize=(width, height), layout="constrained")


def thresholds(spec: StrictModel, prefix: str = "") -> Iterator[tuple[str, float]]:
    """Entropies in nats that a spec's methods compare with, by the names of their fields."""
    for name in type(spec).model_fields:
        value = getattr(spec, name)
        path = f"{prefix}.{name}" if prefix else name
        if isinstance(value, StrictModel):
            yield from thresholds(value, path)
        elif isinstance(value, tuple):
            for item in value:
                if isinstance(item, StrictModel):
                    yield from thresholds(item, getattr(item, "method", path))
        elif isinstance(value, float) and name.endswith("entropy_threshold"):
            yield path, value


def entropy(recording: Recording) -> "Figure":
    """Entropy over position, latent and discrete steps apart, with the spec's thresholds."""
    steps = recording.trace.steps
    drawing = figure()
    axes = drawing.subplots()
    axes.plot([s.position for s in steps], [s.entropy for s in steps], lw=0.6, color="0.7")
    for latent, colour, label in ((True, LATENT, "latent"), (False, DISCRETE, "discrete")):
        chosen = [s for s in steps if s.latent is latent]
        axes.plot(
            [s.position for s in chosen],
            [s.entropy for s in chosen],
            ".",
            ms=3,
            color=colour,
            label=label,
        )
    for name, value in thresholds(recording.trace.spec):
        axes.axhline(value, ls="--", lw=0.8, color=MARK, label=f"{name} = {value:g}")
    axes.set(xlabel="position", ylabel="entropy, nats")
    axes.legend(fontsize="small")
    return drawing


def latent_share(recording: Recording, window: int = WINDOW) -> "Figure":
    """Share of latent steps over position, a running mean."""
    steps = recording.trace.steps
    flags = [float(step.latent) for step in steps]
    total, shares = 0.0, []
    for index, flag in enumerate(flags):
        total += flag - (flags[index - window] if index >= window else 0.0)
        shares.append(total / min(index + 1, window))
    drawing = figure()
    axes = drawing.subplots()
    axes.plot([step.position for step in steps], shares, color=LATENT)
    axes.set(
        xlabel="position", ylabel=f"latent share of the last {window} steps", ylim=(-0.02, 1.02)
    )
    return drawing


def weights(recordings: Sequence[Recording]) -> "Figure":
    """Histogram of the entries' weights in concept tokens, the largest of each apart."""
    entries = [s.entries for r in recordings for s in r.trace.steps if s.latent and s.entries]
    top = [one[0][1] for one in entries]
    rest = [weight for one in entries for _, weight in one[1:]]
    drawing = figure(5.0)
    axes = drawing.subplots()
    edges = [i / 40 for i in range(41)]
    axes.hist([top, rest], edges, stacked=True, color=[LATENT, "0.7"], label=["largest", "others"])
    axes.set(xlabel="weight", ylabel="entries")
    axes.legend(fontsize="small")
    return drawing


def svg(drawing: "Figure") -> str:
    """The figure as an SVG element, the same text for the same figure."""
    from matplotlib import rc_context

    out = StringIO()
    with rc_context({"svg.hashsalt": "tokenlens", "svg.fonttype": "none"}):
        drawing.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    return text[text.index("<svg") :]
