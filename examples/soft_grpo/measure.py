"""Every model decoded every way: before, trained softly, trained on tokens; paired by problem.

    cd /tmp/soft_grpo
    python .../measure.py table --soft soft-* --tokens tokens-*

Resumable; each model's own report is in its folder.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from policy import Decoding
from train import MODEL

from tokenlens.evaluation import GREEDY, Arm, ArmSampling, Results, evaluate, load_task, open_engine
from tokenlens.evaluation.report import write
from tokenlens.evaluation.results import by_question
from tokenlens.evaluation.statistics import compare, interval
from tokenlens.spec import DecodingSpec, parse_spec

BEFORE = "before"
KINDS = (BEFORE, "SofT-GRPO", "GRPO on tokens")


def arms() -> list[Arm]:
    """The ways of decoding; soft ones at the defaults and at the rollout's settings."""
    how = Decoding()
    mixes, noise = how.spec(0)["methods"]
    usual = {"method": "soft_thinking"}
    soft: dict[str, list[Any]] = {
        "soft, T 0.6, 15 entries": [usual],
        "soft, T 1, 5 entries": [mixes],
        "soft with noise, T 1, 5 entries (SofT-GRPO's rollout)": [mixes, noise],
        "soft with noise, T 0.6, 5 entries": [{**mixes, "temperature": 0.6}, noise],
    }
    unfiltered = ArmSampling(temperature=1.0, top_p=1.0)
    return [
        Arm(name="greedy", spec=DecodingSpec(), sampling=GREEDY),
        Arm(name="sampling, T 0.6, top-p 0.95", spec=DecodingSpec(), sampling=ArmSampling()),
        Arm(name="sampling, T 1 (the tokens' rollout)", spec=DecodingSpec(), sampling=unfiltered),
        *(
            # What is sampled behind the thinking is the arg-max everywhere.
            Arm(name=name, spec=parse_spec({"methods": methods}), sampling=GREEDY)
            for name, methods in soft.items()
        ),
    ]


def measured(
    folder: Path, model: str, limit: int, samples: int, ways: Sequence[Arm], split: str
) -> Results:
    """One model's answers; what is there already is kept."""
    task = load_task("countdown" if split == "test" else "countdown-dev", limit=limit)
    engine = open_engine("hf", model)
    try:
        found = evaluate(
            engine, task, ways, folder, model=model, samples=samples, batch_size=128,
            max_new_tokens=256, progress=lambda *seen: print(folder.name, *seen, flush=True),
        )  # fmt: skip
    finally:
        engine.close()
    write(found, folder)
    return found


def table(kinds: Mapping[str, Sequence[Results]], ways: Sequence[Arm]) -> str:
    """Markdown: accuracies, and differences of the means over training seeds by problem."""
    pairs = (("SofT-GRPO", BEFORE), ("GRPO on tokens", BEFORE), ("SofT-GRPO", "GRPO on tokens"))
    head = ["decoding", *kinds, *(f"{one} - {other}" for one, other in pairs)]
    lines = [head, ["---"] * len(head)]
    for way in ways:
        values = {
            kind: [
                sum(found) / len(found)
                for found in zip(*(by_question(one.records(way.name)) for one in results))
            ]
            for kind, results in kinds.items()
        }
        cells = [way.name]
        for kind in kinds:
            mean, low, high = (100 * value for value in interval(values[kind]))
            cells.append(f"{mean:.1f} [{low:.1f}, {high:.1f}]")
        for one, other in pairs:
            found = compare(values[one], values[other])
            mean, low, high = (100 * value for value in found[:3])
            cells.append(f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]")
        lines.append(cells)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def main() -> None:
    """Read the command line, measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--soft", type=Path, nargs="+", required=True, help="trainings")
    parser.add_argument("--tokens", type=Path, nargs="+", required=True, help="trainings")
    parser.add_argument("--model", default="tiny-reasoner-latent", help="before training")
    parser.add_argument("--limit", type=int, default=1000, help="held-out problems")
    parser.add_argument("--samples", type=int, default=1, help="answers a problem")
    parser.add_argument("--split", choices=("dev", "test"), default="test")
    options = parser.parse_args()
    trained = dict(zip(KINDS[1:], (options.soft, options.tokens), strict=True))
    models = {
        BEFORE: {BEFORE: options.model},
        **{
            kind: {folder.name: str(folder / MODEL) for folder in folders}
            for kind, folders in trained.items()
        },
    }
    ways = arms()
    kinds = {
        kind: [
            measured(
                options.folder / name, path, options.limit, options.samples, ways, options.split
            )
            for name, path in found.items()
        ]
        for kind, found in models.items()
    }
    text = table(kinds, ways)
    (options.folder / "table.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
