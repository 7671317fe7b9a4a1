"""Launches of one decode step, without a device: of every method and every conformance row.

One step is ``Core.step`` and ``Core.commit``, with everything that they write (the next inputs
too). It runs on the ``meta`` device, where nothing is computed and a host read is an error. An op
that makes or changes numbers is one launch; views and fresh memory are none; the library's own ops
count as the launches of their Triton kernels. An op of torch's that takes several kernels (a sort)
counts once, so that the figures are a lower bound where logits are sorted.

    python benchmarks/launches.py [--write] [--csv launches.csv]

``--write`` puts the table between the marks in ``docs/costs.md``.
"""

if __name__ == "__main__":
    import sentences  # noqa: F401  first: it says what is missing

import argparse
import csv
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenlens_kernels import LAUNCHES
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "conformance"))

import conformance_table  # noqa: E402

from tokenlens.core import Core, bind  # noqa: E402
from tokenlens.methods import METHODS  # noqa: E402
from tokenlens.spec import Need, parse_spec  # noqa: E402
from tokenlens.spec.registry import METHOD_CONFIGS, NEEDS_LATENT  # noqa: E402

START, END, EOS = 3, 4, 2
VOCAB = 96
SOFT = {"method": "soft_thinking"}

SETTINGS: dict[str, dict[str, Any]] = {
    "cyclic_reflex": {"words": ["a"]},
    "static_window": {"words": ["a"], "windows": [[4, 9]]},
    "tip": {"words": ["a"]},
    "nowait": {"words": ["a"]},
    "thinking_budget": {"budget": 9},
    "s1": {"text": "a"},
    "alpha_one": {"average_thinking": 12, "text": "a", "words": ["a"], "step_ends": ["b"]},
    "hapo": {"median": 0.1, "std": 0.5, "scale_pos": 1.0, "scale_neg": -1.0},
    "answer_now": {"after": 2},
    "swi_reasoning": {"first": {"tokens": [7], "keep": 0.9}},
}
"""What a method must be told, or what the toy vocabulary cannot write otherwise."""

COLD = {**SOFT, "cold_stop": {"entropy_threshold": 0.1, "patience": 3}}


class Letters:
    """A tokenizer with a token for every character."""

    letters = "_ .<>abcdefgh".ljust(VOCAB, "?")

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [max(0, self.letters.find(c)) for c in text]

    def decode(self, ids: list[int], **kwargs: Any) -> str:
        return "".join(self.letters[i] for i in ids)


class Host:
    """Stands for an engine that lends its vectors; making them is the engine's launch."""

    hosts = Need.OF_ENGINE
    hidden_size = 16

    def dense(self, logits: Tensor, active: Tensor, inverse_temperature: Tensor) -> Tensor:
        return torch.empty(len(logits), self.hidden_size, device=logits.device)

    def hidden(self) -> Tensor:
        return torch.empty(2, self.hidden_size, device="meta")

    def alignment(self) -> tuple[Tensor, Tensor]:
        size = self.hidden_size
        return torch.empty(size, size, device="meta"), torch.empty((), device="meta")


class Launches(TorchDispatchMode):
    """Counts what a device would be told to do."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        if name.startswith("tokenlens::"):
            self.ops += [name] * LAUNCHES[name.removeprefix("tokenlens::")]
        elif not (func.is_view or name in NO_LAUNCH):
            self.ops.append(name)
        return func(*args, **(kwargs or {}))


NO_LAUNCH = frozenset(
    f"aten::{name}"
    for name in (
        *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"),
        *("detach", "alias", "_unsafe_view", "_reshape_alias", "lift_fresh"),
    )
)
"""Ops that make no numbers, though their schema does not say that they are views."""


def compositions() -> Iterator[tuple[str, tuple[dict[str, Any], ...]]]:
    """Every method of the registry, then every row of the conformance table that has methods."""
    for name in METHOD_CONFIGS:
        one = {"method": name, **SETTINGS.get(name, {})}
        yield name, ((SOFT, one) if name in NEEDS_LATENT else (one,))
    yield "soft_thinking + cold stop + gumbel_noise", (COLD, {"method": "gumbel_noise"})
    yield "swi_reasoning + switch control", (
        {**SETTINGS["swi_reasoning"], "method": "swi_reasoning",
         "switch_control": {"after": 1, "terminate": "a"}},
    )  # fmt: skip
    table = conformance_table
    rows: dict[str, tuple[dict[str, Any], ...]] = {
        one.name: one.methods for one in table.SCENARIOS if one.methods
    }
    rows |= {**table.METHODS, **table.WORD_METHODS}
    rows |= {f"reasoner: {name}": methods for name, methods in table.REASONER.items() if methods}
    for name, methods in rows.items():
        yield f"row {name}", tuple(_toy(method) for method in methods)


def _toy(config: dict[str, Any]) -> dict[str, Any]:
    """The same method, with words and texts that the toy vocabulary can write."""
    toy = {"words": ["a"], "text": "a"}
    given = {key: toy.get(key, value) for key, value in config.items()}
    missing = SETTINGS.get(config["method"], {})
    return {**{key: value for key, value in missing.items() if key not in given}, **given}


def count(methods: tuple[dict[str, Any], ...], num_rows: int = 4) -> list[str]:
    """What one step of a batch launches, by name."""
    phase = {"think_start": [START], "think_end": [END]}
    spec = parse_spec({"methods": [dict(m) for m in methods], "seed": 1, "phase": phase})
    request = bind(spec, methods=METHODS, tokenizer=Letters(), vocab_size=VOCAB, eos_ids=[EOS])
    host = Host()
    core = Core(methods=METHODS, max_slots=num_rows, vocab_size=VOCAB, device="meta", host=host)
    for slot in range(num_rows):
        core.add(slot, request, [START])
    slots = torch.zeros(num_rows, dtype=torch.int64, device="meta")
    sampled = torch.zeros_like(slots)
    advance = torch.ones(num_rows, dtype=torch.bool, device="meta")
    logits = torch.empty(num_rows, VOCAB, device="meta")
    found: list[str] = []
    host.hidden = lambda: torch.empty(num_rows, 16, device="meta")  # type: ignore[method-assign]
    # What is kept from step to step is made in the first.
    for _ in range(2):
        with Launches() as launches:
            core.step(logits, slots)
            core.commit(sampled, slots, advance)
        found = launches.ops
    return found


def table() -> list[tuple[str, int]]:
    """Every composition and its launches."""
    return [(name, len(count(methods))) for name, methods in compositions()]


BEGIN, END_MARK = "<!-- launches: begin -->", "<!-- launches: end -->"


def markdown(rows: list[tuple[str, int]]) -> str:
    """The table of ``docs/costs.md``."""
    lines = ["| composition | launches |", "|---|---|"]
    return "\n".join(lines + [f"| {name} | {number} |" for name, number in rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--write", action="store_true", help="into docs/costs.md")
    parser.add_argument("--csv", type=Path)
    arguments = parser.parse_args()
    rows = table()
    print(markdown(rows))
    if arguments.write:
        page = ROOT / "docs" / "costs.md"
        text = page.read_text(encoding="utf-8")
        between = f"{BEGIN}\n{markdown(rows)}\n{END_MARK}"
        pattern = f"{re.escape(BEGIN)}.*?{re.escape(END_MARK)}"
        page.write_text(re.sub(pattern, lambda _: between, text, flags=re.S), encoding="utf-8")
    if arguments.csv:
        with arguments.csv.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["composition", "launches"])
            writer.writerows(rows)


if __name__ == "__main__":
    main()
