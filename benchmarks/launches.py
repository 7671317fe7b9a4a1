"""Launches of one decode step, without a device: of every method and every conformance row.

One step is ``Core.step`` and ``Core.commit``, with everything that they write (the next inputs
too). Two counts:

* *eager*: on the ``meta`` device, where nothing is computed and a host read is an error. An op that
  makes or changes numbers is one launch; views and fresh memory are none. An op of torch's that
  takes several kernels (a sort) counts once, so that this is a lower bound.
* *compiled*: of the graphs that a device would run, the kernels that Inductor writes for Triton,
  and the ops that it calls. The graphs are lowered as far as their text: nothing is run.

The library's own ops count as the launches of their Triton kernels in both. Lowering takes seconds
a graph, so that ``results/launches.json`` keeps the count of each graph by the hash of its text.

    python benchmarks/launches.py [--write] [--csv launches.csv] [--device cuda]

``--write`` puts the table between the marks in ``docs/costs.md``. With a device, the launches are
counted by torch's profiler instead, of the eager and of the compiled step.
"""

if __name__ == "__main__":
    import sentences  # noqa: F401  first: it says what is missing

import argparse
import copy
import csv
import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenlens_kernels import LAUNCHES
from torch import Tensor
from torch.fx import GraphModule
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "tests" / "conformance"), str(ROOT / "tests" / "support")]

import conformance_table  # noqa: E402
from lowered import launches_of, text_of  # noqa: E402
from operator_files import Layers, allow_toys  # noqa: E402

from tokenlens.core import Core, bind  # noqa: E402
from tokenlens.core.compiled import FORMS, ROWS, Form, vectors  # noqa: E402
from tokenlens.core.drafts import DraftSteps  # noqa: E402
from tokenlens.core.traced import GivenVectors  # noqa: E402
from tokenlens.methods import METHODS  # noqa: E402
from tokenlens.spec import DecodingSpec, Need, needs_of, parse_spec  # noqa: E402
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
    "tripwire": {"entropy": 1.0, "margin": 0.1, "token": 7, "top_k": 20, "top_p": 0.9},
    "swi_reasoning": {"first": {"tokens": [7], "keep": 0.9}},
    "softcotpp": {"placeholder": 7},
}
"""What a method must be told, or what the toy vocabulary cannot write otherwise."""

EAGER = Need.DENSE_MIXTURE | Need.LAYER_STATES | Need.PROMPT_STATE
"""What is asked of the engine in the middle of a step, which is eager then, and has no line."""

COLD = {**SOFT, "cold_stop": {"entropy_threshold": 0.1, "patience": 3}}


class Letters:
    """A tokenizer with a token for every character."""

    letters = "_ .<>abcdefgh\n".ljust(VOCAB, "?")

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [max(0, self.letters.find(c)) for c in text]

    def decode(self, ids: list[int], **kwargs: Any) -> str:
        return "".join(self.letters[i] for i in ids)


class Vectors:
    """Stands for an engine's vectors; making them is the engine's launch."""

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
        methods = (SOFT, one) if name in NEEDS_LATENT else (one,)
        if not needs_of(spec_of(methods)) & EAGER:
            yield name, methods
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
        toys = tuple(_toy(method) for method in methods)
        if not needs_of(spec_of(toys)) & EAGER:
            yield f"row {name}", toys


def _toy(config: dict[str, Any]) -> dict[str, Any]:
    """The same method, with words and texts that the toy vocabulary can write."""
    toy = {"words": ["a"], "text": "a"}
    given = {key: toy.get(key, value) for key, value in config.items()}
    missing = SETTINGS.get(config["method"], {})
    return {**{key: value for key, value in missing.items() if key not in given}, **given}


def spec_of(methods: tuple[dict[str, Any], ...]) -> DecodingSpec:
    """A spec of these methods, with the toy vocabulary's markers."""
    phase = {"think_start": [START], "think_end": [END]}
    return parse_spec({"methods": [dict(m) for m in methods], "seed": 1, "phase": phase})


def request_of(methods: tuple[dict[str, Any], ...]) -> Any:
    """A request of these methods, bound to the toy vocabulary."""
    allow_toys(Vectors.hidden_size, VOCAB)
    return bind(
        spec_of(methods), methods=METHODS, tokenizer=Letters(), vocab_size=VOCAB, eos_ids=[EOS]
    )


def count(methods: tuple[dict[str, Any], ...], num_rows: int = 4) -> list[str]:
    """What one step of a batch launches, by name."""
    request = request_of(methods)
    engine_vectors = Vectors()
    core = Core(
        methods=METHODS,
        max_slots=num_rows,
        vocab_size=VOCAB,
        device="meta",
        engine_vectors=engine_vectors,
        layers=Layers(num_rows, Vectors.hidden_size, "meta"),
    )
    for slot in range(num_rows):
        core.add(slot, request, [START])
    slots = torch.zeros(num_rows, dtype=torch.int64, device="meta")
    sampled = torch.zeros_like(slots)
    advance = torch.ones(num_rows, dtype=torch.bool, device="meta")
    logits = torch.empty(num_rows, VOCAB, device="meta")
    found: list[str] = []
    engine_vectors.hidden = lambda: torch.empty(num_rows, 16, device="meta")  # type: ignore[method-assign]
    # What is kept from step to step is made in the first.
    for _ in range(2):
        with Launches() as launches:
            core.step(logits, slots)
            core.commit(sampled, slots, advance)
        found = launches.ops
    return found


def count_drafted(methods: tuple[dict[str, Any], ...], drafts: int) -> tuple[int, int]:
    """What a step launches that keeps states to take back: alone, and over drafts."""
    request, num_rows = request_of(methods), 4
    core = Core(
        methods=METHODS,
        max_slots=num_rows,
        vocab_size=VOCAB,
        device="meta",
        rewind_steps=drafts,
    )
    for slot in range(num_rows):
        core.add(slot, request, [START])
    steps = DraftSteps(core)
    logits = torch.empty(num_rows * (drafts + 1), VOCAB, device="meta")
    tokens = torch.zeros(num_rows, drafts + 1, dtype=torch.int64, device="meta")
    slots, advance = tokens[:, 0], torch.ones(num_rows, dtype=torch.bool, device="meta")
    found = []
    # What is kept from step to step is made in the first.
    for offsets in (1, drafts + 1, 1, drafts + 1):
        rows, places = logits[: num_rows * offsets], tokens[:, :offsets].T
        with Launches() as launches:
            if offsets == 1:
                core.step(rows, slots, in_place=True)
                core.commit(slots, slots, advance)
            else:
                steps.step(rows, slots, places, tokens[:, 1:].T, advance)
                steps.commit(tokens, slots)
        found.append(len(launches.ops))
    return found[-2], found[-1]


class Lowered:
    """Counts the launches of compiled graphs; what was counted before is not lowered again."""

    path = ROOT / "benchmarks" / "results" / "launches.json"

    def __init__(self) -> None:
        self.known: dict[str, list[str]] = {}
        if self.path.exists():
            self.known = json.loads(self.path.read_text(encoding="utf-8"))
        self.used: dict[str, list[str]] = {}
        self.found: list[str] = []

    def __call__(self, graph: GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Any]:
        """A compiler that counts, and gives the graph back as it is."""
        # Numbers are left out: those of symbols are the process's, those of columns any method's.
        code = re.sub(r"\d+", "", graph.code) + str([(t.dim(), t.dtype) for t in inputs])
        key = hashlib.sha256(code.encode()).hexdigest()[:20]
        if key not in self.known:
            self.known[key] = launches_of(text_of(copy.deepcopy(graph), inputs), LAUNCHES)
        self.used[key] = self.known[key]
        self.found += self.known[key]
        return graph

    def save(self) -> None:
        """Keep the counts of this run's graphs and no others."""
        text = json.dumps(dict(sorted(self.used.items())), indent=0)
        self.path.write_text(text + "\n", encoding="utf-8")


def count_compiled(methods: tuple[dict[str, Any], ...], lowered: Lowered) -> list[str]:
    """What the compiled form of one step launches, by name."""
    core = Core(
        methods=METHODS,
        max_slots=ROWS,
        vocab_size=VOCAB,
        engine_vectors=Vectors(),
        layers=Layers(ROWS, Vectors.hidden_size),
    )
    core._engine_vectors = GivenVectors(core._engine_vectors, vectors(core, ROWS))  # type: ignore[assignment]
    request = request_of(methods)
    for slot in range(ROWS):
        core.add(slot, request, [START])
    lowered.found = []
    Form(core, VOCAB, torch.float32, lowered)
    return lowered.found


def ceiling_of(name: str) -> int:
    """The most launches that a composition may take, compiled."""
    if name == HEADLINE:
        return 12
    return 20 if name in METHOD_CONFIGS else 32


HEADLINE = "soft_thinking + cold stop + gumbel_noise"


def table(only: Sequence[str] = ()) -> list[tuple[str, int, int]]:
    """Compositions and their launches, eager and compiled; all if none is named."""
    lowered = Lowered()
    rows = []
    for name, methods in compositions():
        if not only or name in only:
            rows.append((name, len(count(methods)), len(count_compiled(methods, lowered))))
            if not only:
                lowered.save()
    return rows


def profiled(device: str) -> list[tuple[str, int, int]]:
    """The same of a device, as torch's profiler saw them."""
    from torch.profiler import ProfilerActivity, profile

    rows = []
    for name, methods in compositions():
        if name.startswith("row "):
            continue
        found = []
        for forms in (None, FORMS):
            core = Core(
                methods=METHODS,
                max_slots=4,
                vocab_size=VOCAB,
                device=device,
                engine_vectors=Vectors(),
                layers=Layers(ROWS, Vectors.hidden_size),
            )
            core.forms, request = forms, request_of(methods)
            if forms is not None:
                forms.warm(core, [request], VOCAB, torch.float32)
            core._engine_vectors = GivenVectors(core._engine_vectors, vectors(core, 4))  # type: ignore[assignment]
            for slot in range(4):
                core.add(slot, request, [START])
            slots = torch.arange(4, device=device)
            logits = torch.randn(4, VOCAB, device=device)
            sampled, advance = torch.zeros_like(slots), torch.ones_like(slots, dtype=torch.bool)
            for repeat in range(3):
                with profile(activities=[ProfilerActivity.CUDA]) as profiler:
                    core.step(logits, slots)
                    core.commit(sampled, slots, advance)
                    torch.cuda.synchronize()
                if repeat == 2:
                    events = profiler.events()
                    found.append(sum(str(event.device_type).endswith("CUDA") for event in events))
        rows.append((name, *found))
    return rows  # type: ignore[return-value]


BEGIN, END_MARK = "<!-- launches: begin -->", "<!-- launches: end -->"


def markdown(rows: list[tuple[str, int, int]]) -> str:
    """The table of ``docs/costs.md``."""
    lines = ["| composition | compiled | ceiling | eager |", "|---|---|---|---|"]
    lines += [f"| {name} | {ours} | {ceiling_of(name)} | {eager} |" for name, eager, ours in rows]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--write", action="store_true", help="into docs/costs.md")
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--device", default="meta", help="cuda: counted by the profiler")
    parser.add_argument("--only", nargs="+", default=(), help="compositions by name")
    arguments = parser.parse_args()
    rows = table(arguments.only) if arguments.device == "meta" else profiled(arguments.device)
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
            writer.writerow(["composition", "eager", "compiled"])
            writer.writerows(rows)


if __name__ == "__main__":
    main()
