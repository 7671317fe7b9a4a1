"""What reflection schedules and budgets do on the tiny reasoner, on held-out problems.

Accuracy, thinking tokens and reflection tokens of CyclicReflex over a grid of amplitude and period,
of the baselines that its paper compares with, and of budgets; every row is the same model on the
same problems of the test split, sampled at temperature 0.6. Controls: plain sampling twice, with
two seeds (what chance alone moves), and constant biases (does *when* matter?). Intervals are of
95 %, differences are paired by problem with the first plain sampling.

    python benchmarks/reflection_schedules.py [--problems 500] [--model tiny-reasoner-large]
"""

if __name__ == "__main__":
    import sentences  # noqa: F401  first: it says what is missing

import argparse
import csv
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from tokenlens import assets
from tokenlens.evaluation.countdown import check_answer, problems, prompt
from tokenlens.evaluation.statistics import compare, holm, interval
from tokenlens.hf import generate_kwargs
from tokenlens.spec import (
    S1,
    AlphaOne,
    CyclicReflex,
    DecodingSpec,
    NoWait,
    StaticWindow,
    ThinkingBudget,
    Tip,
)

MAX_NEW_TOKENS = 320
TEMPERATURE = 0.6
# A static cache: a dynamic one is copied whole at every step of a batch of hundreds.
CACHE = {"cache_implementation": "static", "disable_compile": True}
SAMPLING = {"do_sample": True, "temperature": TEMPERATURE, "top_k": 30, "top_p": 0.95}
WORDS = ("wait",)
CONTROL = "plain sampling"
# The reasoner is sure of its "wait": a bias of 3 logits changes almost nothing.
AMPLITUDES, PERIODS = (4.0, 8.0, 16.0), (20.0, 60.0, 160.0)

WAYS = {
    CONTROL: (),
    "plain sampling, another seed": (),
    **{
        f"CyclicReflex, A {A:.0f}, C {C:.0f}": (CyclicReflex(words=WORDS, amplitude=A, period=C),)
        for A in AMPLITUDES
        for C in PERIODS
    },
    "constant -8": (StaticWindow(words=WORDS, amplitude=-8.0),),
    "constant +8": (StaticWindow(words=WORDS, amplitude=8.0),),
    "TIP, alpha 8, beta 60": (Tip(words=WORDS, penalty=8.0, duration=60),),
    "NoWait": (NoWait(),),
    "S1, 1 end ignored": (S1(text="wait", temperature=TEMPERATURE),),
    "budget 60": (ThinkingBudget(budget=60),),
    "budget 120": (ThinkingBudget(budget=120),),
    "budget 120, ramp, next step": (
        ThinkingBudget(budget=120, ramp=0.3, ramp_strength=6.0, stop="step", grace=20),
    ),
    "AlphaOne, alpha 1 of 120": (
        AlphaOne(text="wait", average_thinking=120, alpha=1.0, temperature=TEMPERATURE),
    ),
}


def measure(tokenizer, problem, ids, waits):
    """Right or not, thinking tokens, reflection tokens of one output."""
    start, end = (tokenizer.convert_tokens_to_ids(t) for t in ("<think>", "</think>"))
    right = check_answer(problem, tokenizer.decode(ids))
    thought = ids[ids.index(start) + 1 :] if start in ids else []
    thought = thought[: thought.index(end)] if end in thought else thought
    thought = [token for token in thought if token != tokenizer.pad_token_id]
    return float(right), len(thought), sum(token in waits for token in thought)


def evaluate(model, tokenizer, chosen, methods, seed, batch):
    """A list of right, thinking tokens and reflection tokens, one entry a problem."""
    found = []
    waits = {tokenizer.convert_tokens_to_ids(w) for w in ("wait", " wait", "Wait", " Wait")}
    for start in range(0, len(chosen), batch):
        part = chosen[start : start + batch]
        texts = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt(p)}], tokenize=False, add_generation_prompt=True
            )
            for p in part
        ]
        inputs = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        seeds = range(seed * 1_000_003 + start, seed * 1_000_003 + start + len(part))
        specs = [DecodingSpec(methods=methods, seed=s) for s in seeds]
        torch.manual_seed(seeds[0])
        output = model.generate(
            **inputs, **generate_kwargs(model, tokenizer, specs), **SAMPLING, **CACHE,
            max_new_tokens=MAX_NEW_TOKENS, eos_token_id=2,
        )  # fmt: skip
        new = output[:, inputs["input_ids"].shape[1] :].tolist()
        found += [measure(tokenizer, p, ids, waits) for p, ids in zip(part, new, strict=True)]
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--problems", type=int, default=500)
    parser.add_argument("--model", default="tiny-reasoner-large")
    parser.add_argument("--batch", type=int, default=500)
    parser.add_argument("--only", default="", help="ways whose name holds this, and the control")
    parser.add_argument(
        "--csv", type=Path, default=Path(__file__).parent / "results" / "reflection_schedules.csv"
    )
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    three = arguments.problems // 4
    chosen = problems("test", 3, three) + problems("test", 4, arguments.problems - three)
    path = assets.path_of(arguments.model)
    tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    ways = {w: m for w, m in WAYS.items() if w == CONTROL or arguments.only in w}
    measured, seconds = {}, {}
    for way, methods in track(ways.items(), console=Console(stderr=True), transient=True):
        began = time.process_time()
        seed = 1 if "another seed" in way else 0
        measured[way] = evaluate(model, tokenizer, chosen, methods, seed, arguments.batch)
        seconds[way] = time.process_time() - began
        # After every row: what a run that is cut short has measured is not lost.
        table = write(arguments.csv, arguments.model, measured, seconds)
    print(table)


def write(path, model, measured, seconds):
    """The table as CSV; returns it as Markdown."""
    columns = {way: list(zip(*found)) for way, found in measured.items()}
    control = columns[CONTROL]
    others = [way for way in columns if way != CONTROL]
    against = {way: compare(columns[way][0], control[0]) for way in others}
    adjusted = dict(zip(others, holm([against[way].p for way in others])))
    lines = []
    for way, (right, thinking, reflections) in columns.items():
        share, tokens, waits = interval(right), interval(thinking), interval(reflections)
        difference = against.get(way)
        figures = [100 * x for x in share] + [*tokens, *waits]
        figures += [100 * x for x in difference[:3]] + [adjusted[way]] if difference else [""] * 4
        lines.append([model, way, len(right), *figures, seconds[way]])
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        groups = ("accuracy", "thinking_tokens", "reflection_tokens", "difference")
        names = [f"{g}{end}" for g in groups for end in ("", "_low", "_high")]
        writer.writerow(["model", "decoding", "n", *names, "p_holm", "cpu_s"])
        writer.writerows(
            [f"{x:.4g}" if isinstance(x, float) else x for x in line] for line in lines
        )
    table = [
        "| decoding | accuracy % | against the control | p (Holm) | thinking | reflections |",
        "|---|---|---|---|---|---|",
    ]
    for _, way, _, *x, _ in lines:
        moved = f"{x[9]:+.1f} [{x[10]:+.1f}, {x[11]:+.1f}] | {x[12]:.2g}" if x[9] != "" else "|"
        table.append(
            f"| {way} | {x[0]:.1f} [{x[1]:.1f}, {x[2]:.1f}] | {moved}"
            f" | {x[3]:.0f} [{x[4]:.0f}, {x[5]:.0f}] | {x[6]:.1f} [{x[7]:.1f}, {x[8]:.1f}] |"
        )
    return "\n".join(table)


if __name__ == "__main__":
    main()
