"""Train the tiny reasoners, measure them on the test split, and write their model cards.

Usage: ``python make_all.py [--out tokenlens/assets] [--evidence-seed 1]``

Scope: which process runs when. Two training processes run side by side, each on one thread. The
weights of the evidence seed are thrown away; its figures go into the cards.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from card import write_cards

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RESULTS = HERE / "results.json"
#: What each model is measured with; the soft modes show when soft thinking fails and works.
MODES = {
    "small": ("greedy", "sample"),
    "large": ("greedy", "sample", "soft", "gumbel"),
    "latent": ("greedy", "sample", "soft", "gumbel"),
}


def environment() -> dict[str, str]:
    """Return the environment of a training or measuring process."""
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # Without these glibc gives every large tensor back to the kernel at once and asks for it
        # again: on some machines half of the time goes into page faults.
        "MALLOC_MMAP_THRESHOLD_": str(2**30),
        "MALLOC_TRIM_THRESHOLD_": str(2**32),
    }


def run_side_by_side(commands: list[list[str]]) -> None:
    """Run at most two processes at once, in order; raise if one fails."""
    waiting, running = list(commands), []
    while waiting or running:
        while waiting and len(running) < 2:
            command = [sys.executable, *waiting.pop(0)]
            running.append(subprocess.Popen(command, env=environment()))
        time.sleep(0.5)
        for process in [p for p in running if p.poll() is not None]:
            running.remove(process)
            if process.returncode:
                for other in running:
                    other.terminate()
                raise SystemExit(f"{process.args} ended with code {process.returncode}: see above")


def training(size: str, seed: int, out: Path, parent: Path | None = None) -> list[str]:
    """Return the command that trains one model."""
    command = [str(HERE / "train.py"), "--size", size, "--seed", str(seed), "--out", str(out)]
    return command if parent is None else [*command, "--parent", str(parent)]


def measuring(folder: Path, out: Path, modes: tuple[str, ...]) -> list[str]:
    """Return the command that measures one model on the test split."""
    command = [str(HERE / "measure.py"), str(folder), "--split", "test", "--out", str(out)]
    return [*command, "--modes", *modes]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "tokenlens" / "assets")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--evidence-seed", type=int, help="train small and large again, keep figures"
    )
    parser.add_argument("--stage", choices=("all", "train", "measure", "cards"), default="all")
    parser.add_argument("--work", type=Path, help="folder for weights that do not ship")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        run(arguments, arguments.work or Path(scratch))


def run(arguments: argparse.Namespace, work: Path) -> None:
    """Carry out the stages that were asked for."""
    work.mkdir(parents=True, exist_ok=True)
    out, seed, extra = arguments.out, arguments.seed, arguments.evidence_seed
    shipped = {size: out / f"tiny-reasoner-{size}" for size in MODES}
    seeds = [seed] if extra is None else [seed, extra]
    bases = {s: work / f"base-{s}" for s in seeds}
    jobs = [("large", seed, shipped["large"]), ("small", seed, shipped["small"])]
    if extra is not None:
        jobs += [(size, extra, work / f"{size}-{extra}") for size in ("large", "small")]
    if arguments.stage in ("all", "train"):
        first = [training("base", s, bases[s]) for s in seeds]
        first += [training(*job) for job in jobs if job[0] == "small"]
        run_side_by_side(first)
        second = [training(*job, bases[job[1]]) for job in jobs if job[0] == "large"]
        second.append(training("latent", seed, shipped["latent"], bases[seed]))
        run_side_by_side(second)
    jobs.append(("latent", seed, shipped["latent"]))
    if arguments.stage in ("all", "measure"):
        figures = {job: work / f"{job[0]}-{job[1]}.json" for job in jobs}
        # The evidence seed is there for small against large: the plain modes are enough.
        run_side_by_side(
            [
                measuring(job[2], path, MODES[job[0]] if job[1] == seed else MODES["small"])
                for job, path in figures.items()
            ]
        )
        results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        for (size, its_seed, folder), path in figures.items():
            record = json.loads((folder / "training.json").read_text())
            results.setdefault(size, {})[str(its_seed)] = {
                "weights_sha256": record["weights_sha256"],
                "cpu_seconds": record["cpu_seconds"],
                "wall_seconds": record["wall_seconds"],
                "test": json.loads(path.read_text()),
            }
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    if arguments.stage in ("all", "measure", "cards"):
        write_cards(shipped, json.loads(RESULTS.read_text()), seed)


if __name__ == "__main__":
    main()
