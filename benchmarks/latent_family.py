"""What each latent method buys on the tiny reasoner, beside its controls, on held-out problems.

Every row is one model on the same 500 problems of the test split (a quarter with three numbers),
three seeds. Controls: greedy, sampling at the temperature of the concept weights, ``top1`` of soft
thinking, and for each gate soft thinking with ``random_route`` at the gate's own share of latent
steps. Windows and budgets are scaled to thoughts of some 190 tokens. Appends a line a row to a CSV;
rows that are there are not run again.

    python benchmarks/latent_family.py [--models tiny-reasoner-latent ...] [--ways NAME ...]
"""

if __name__ == "__main__":
    import sentences  # noqa: F401  first: it says what is missing

import argparse
import csv
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from tokenlens import assets
from tokenlens.evaluation.countdown import check_answer, problems, prompt
from tokenlens.evaluation.statistics import interval
from tokenlens.hf import generate_kwargs, traces
from tokenlens.spec import (
    Coconut,
    Cot2,
    DecodingSpec,
    Gate,
    GumbelNoise,
    LatentGrpo,
    LatentMas,
    Lead,
    RandomRoute,
    Selar,
    SoftGrpoNoise,
    SoftThinking,
    SoftTokens,
    SwiReasoning,
    ThinkRouter,
    Top1,
)

MAX_NEW_TOKENS = 256
# A static cache: a dynamic one is copied whole at every step of a batch of hundreds.
CACHE = {"cache_implementation": "static", "disable_compile": True}
SAMPLING = {"do_sample": True, "temperature": 0.6, "top_k": 30, "top_p": 0.95}
GREEDY = {"do_sample": False}
SOFT = SoftThinking()
TREND = Gate(of="raw", trend=True, first="latent", dwell_discrete=16)
SWITCHING = {"gate": TREND, "budget": 256}

# name: methods, how the engine samples what tokenlens leaves to it, whether seeds change anything
WAYS = {
    "greedy": ((), GREEDY, False),
    "sampling, T 0.6": ((), SAMPLING, True),
    "soft thinking": ((SOFT,), SAMPLING, True),
    "top1 of soft thinking": ((SOFT, Top1()), SAMPLING, True),
    "ThinkRouter, 0.6": ((ThinkRouter(),), SAMPLING, True),
    "LEAD, trend": ((Lead(gate=TREND),), SAMPLING, True),
    "SwiReasoning": ((SwiReasoning(**SWITCHING),), SAMPLING, True),
    "SeLaR, 0.5": ((Selar(),), SAMPLING, True),
    "soft + Gumbel, tau 0.5": ((SOFT, GumbelNoise()), SAMPLING, True),
    "ThinkRouter + Gumbel": ((ThinkRouter(), GumbelNoise()), SAMPLING, True),
    "SofT-GRPO noise, tau 0.1": ((SOFT, SoftGrpoNoise()), SAMPLING, True),
    "Latent-SFT, top 10": ((LatentGrpo(),), SAMPLING, True),
    "Latent-GRPO, one-sided": ((LatentGrpo(noise="one_sided"),), SAMPLING, True),
    "CoT2, 3 draws": ((Cot2(scale_logits=False),), SAMPLING, True),
    "Soft Tokens, gamma 0.33": ((SoftTokens(),), SAMPLING, True),
    "Coconut, 6 steps": ((Coconut(),), SAMPLING, True),
    "LatentMAS, 6 steps": ((LatentMas(steps=6),), SAMPLING, True),
}
GATES = ("ThinkRouter, 0.6", "LEAD, trend", "SwiReasoning", "SeLaR, 0.5")
COLUMNS = (
    "model", "decoding", "problems", "seeds", "accuracy", "low", "high", "tokens",
    "latent_share_of_thinking", "switches", "cpu_s",
)  # fmt: skip


def evaluate(model, tokenizer, chosen, methods, sampling, seed):
    """Right, tokens, thinking tokens, latent steps and switches of every problem."""
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt(p)}], tokenize=False, add_generation_prompt=True
        )
        for p in chosen
    ]
    inputs = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
    specs = [
        DecodingSpec(methods=methods, seed=seed * 1_000_003 + row) for row in range(len(chosen))
    ]
    kwargs = generate_kwargs(model, tokenizer, specs)
    torch.manual_seed(seed)
    output = model.generate(
        **inputs, **kwargs, **sampling, **CACHE, max_new_tokens=MAX_NEW_TOKENS, eos_token_id=2
    )
    new = output[:, inputs["input_ids"].shape[1] :]
    found = []
    for problem, ids, record in zip(chosen, new, traces(kwargs), strict=True):
        counts = record.counts
        found.append(
            (
                check_answer(problem, tokenizer.decode(ids)),
                int((ids != tokenizer.pad_token_id).sum()),
                counts.thinking_tokens,
                counts.latent_steps,
                counts.gate_switches,
            )
        )
    return found


def row_of(model, tokenizer, chosen, name, way, methods, sampling, seeds):
    """One line of the table."""
    began = time.process_time()
    runs = [evaluate(model, tokenizer, chosen, methods, sampling, seed) for seed in seeds]
    # A problem's value is the mean of its seeds: samples of one problem are not independent.
    right = [sum(run[i][0] for run in runs) / len(runs) for i in range(len(chosen))]
    estimate = interval(right)
    flat = [one for run in runs for one in run]
    tokens, thinking, latent, switches = (sum(one[k] for one in flat) for k in (1, 2, 3, 4))
    return {
        "model": name,
        "decoding": way,
        "problems": len(chosen),
        "seeds": len(seeds),
        "accuracy": round(100 * estimate.mean, 1),
        "low": round(100 * estimate.low, 1),
        "high": round(100 * estimate.high, 1),
        "tokens": round(tokens / len(flat), 1),
        "latent_share_of_thinking": round(latent / max(1, thinking), 3),
        "switches": round(switches / len(flat), 2),
        "cpu_s": round(time.process_time() - began),
    }


class Table:
    """The CSV: a line is measured if it is not there."""

    def __init__(self, path):
        self.path, self.done = path, {}
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            with path.open(newline="") as file:
                self.done = {(row["model"], row["decoding"]): row for row in csv.DictReader(file)}

    def line(self, name, way, given, methods, sampling, seeds):
        """One line, from the file or measured now."""
        if (name, way) in self.done:
            return self.done[name, way]
        line = row_of(*given, name, way, methods, sampling, seeds)
        new = not self.path.exists()
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            if new:
                writer.writeheader()
            writer.writerow(line)
        print(line, flush=True)
        return line


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--problems", type=int, default=500)
    parser.add_argument("--models", nargs="+", default=["tiny-reasoner-latent"])
    parser.add_argument("--ways", nargs="+", default=list(WAYS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--csv", type=Path, default=Path(__file__).parent / "results" / "latent_family.csv"
    )
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    three = arguments.problems // 4
    chosen = problems("test", 3, three) + problems("test", 4, arguments.problems - three)
    table = Table(arguments.csv)
    for name in arguments.models:
        path = assets.path_of(name)
        tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        for way in arguments.ways:
            methods, sampling, seeded = WAYS[way]
            seeds = arguments.seeds if seeded else [0]
            line = table.line(name, way, (model, tokenizer, chosen), methods, sampling, seeds)
            if way in GATES:
                share = float(line["latent_share_of_thinking"])
                routed = (SOFT, RandomRoute(latent_share=share))
                control = f"random_route at the share of {way}"
                given = (model, tokenizer, chosen)
                table.line(name, control, given, routed, SAMPLING, arguments.seeds)


if __name__ == "__main__":
    main()
