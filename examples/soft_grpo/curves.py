"""Plots of trainings: reward, pass@k, length, and held-out pass@1 / pass@k over steps.

python curves.py /tmp/soft_grpo/*-0 --out curves.svg
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from train import LOG

from tokenlens.trace.plots import figure, svg

WINDOW = 10
"""Steps that a point is the mean of: one step's reward has a standard error near 0.07."""


def drawn(folders: Sequence[Path]) -> str:
    """One SVG with a line for each training."""
    drawing = figure(9.0, 6.0)
    panels = drawing.subplots(2, 2, sharex=True).ravel()
    for folder in folders:
        lines = (folder / LOG).read_text(encoding="utf-8").splitlines()
        steps = [json.loads(line) for line in lines]
        if not steps:
            continue
        best = next(name for name in steps[0] if name.startswith("pass@"))
        for axes, name in zip(panels, ("reward", best, "tokens")):
            parts = [steps[i : i + WINDOW] for i in range(0, len(steps), WINDOW)]
            places = [part[-1]["step"] + 1 for part in parts]
            axes.plot(places, [mean(part, name) for part in parts], label=folder.name)
            axes.set(title=f"{name} of the rollouts, means of {WINDOW} steps")
        held = [step for step in steps if "dev" in step]
        for name, style in (("reward", "-"), (best, "--")):
            panels[3].plot(
                [step["step"] + 1 for step in held],
                [step["dev"][name] for step in held],
                style,
                marker="o",
                label=f"{folder.name}, {'pass@1' if name == 'reward' else name}",
            )
    panels[3].set(title="held-out problems, decoded as the rollouts are")
    for axes in panels:
        axes.set(xlabel="steps")
        axes.legend(fontsize="x-small")
    return svg(drawing)


def mean(steps: Sequence[dict[str, Any]], name: str) -> float:
    """Of a figure over steps."""
    return sum(step[name] for step in steps) / len(steps)


def main() -> None:
    """Read the command line and draw."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, default=Path("curves.svg"))
    options = parser.parse_args()
    options.out.write_text(drawn(options.folders), encoding="utf-8")


if __name__ == "__main__":
    main()
