"""What soft thinking buys on the tiny reasoner, beside its controls, on held-out problems.

Every row is the same model on the same problems of the test split; a quarter of them have three
numbers, the rest four. Discrete controls: greedy, and sampling at the temperature of the concept
weights. Prints a Markdown table and writes the figures as CSV.

    python benchmarks/tiny_reasoner.py [--problems 400] [--models tiny-reasoner-large ...]
"""

if __name__ == "__main__":
    import sentences  # noqa: F401  first: it says what is missing

import argparse
import csv
import math
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from tokenlens import assets
from tokenlens.evaluation.countdown import check_answer, problems, prompt
from tokenlens.hf import generate_kwargs, traces
from tokenlens.spec import (
    DecodingSpec,
    DirichletNoise,
    GumbelNoise,
    NoThinking,
    RandomRoute,
    SoftThinking,
    Top1,
)

MAX_NEW_TOKENS = 320
SAMPLING = {"do_sample": True, "temperature": 0.6, "top_k": 30, "top_p": 0.95}
GREEDY = {"do_sample": False}
SOFT = SoftThinking()

# name: methods, and how the engine samples what tokenlens leaves to it
WAYS = {
    "greedy": ((), GREEDY),
    "sampling, T 0.6": ((), SAMPLING),
    "soft thinking": ((SOFT,), SAMPLING),
    "soft + Gumbel, tau 0.5": ((SOFT, GumbelNoise()), SAMPLING),
    "soft + Dirichlet, alpha 4": ((SOFT, DirichletNoise()), SAMPLING),
    "control: top1 of soft": ((SOFT, Top1()), SAMPLING),
    "control: top1 of soft + Gumbel": ((SOFT, GumbelNoise(), Top1()), SAMPLING),
    "control: random half latent": ((SOFT, RandomRoute()), SAMPLING),
    "control: no thinking": ((NoThinking(),), SAMPLING),
}


def evaluate(model, tokenizer, chosen, methods, sampling, seed, batch):
    """Right answers, tokens, thinking tokens and latent steps of every problem."""
    found = []
    for start in range(0, len(chosen), batch):
        part = chosen[start : start + batch]
        texts = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt(p)}], tokenize=False, add_generation_prompt=True
            )
            for p in part
        ]
        inputs = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        # A seed for each problem, so that the batch's cut does not matter to the noise.
        specs = [
            DecodingSpec(methods=methods, seed=seed * 1_000_003 + start + i)
            for i in range(len(part))
        ]
        kwargs = generate_kwargs(model, tokenizer, specs)
        torch.manual_seed(seed * 1_000_003 + start)
        output = model.generate(
            **inputs, **kwargs, **sampling, max_new_tokens=MAX_NEW_TOKENS, eos_token_id=2
        )
        new = output[:, inputs["input_ids"].shape[1] :]
        records = traces(kwargs) if methods else [None] * len(part)
        for problem, ids, record in zip(part, new, records, strict=True):
            text = tokenizer.decode(ids)
            tokens = int((ids != tokenizer.pad_token_id).sum())
            latent = record.counts.latent_steps if record else 0
            found.append((check_answer(problem, text), tokens, latent))
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--problems", type=int, default=400)
    parser.add_argument("--models", nargs="+", default=assets.names())
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--batch", type=int, default=200)
    parser.add_argument(
        "--csv", type=Path, default=Path(__file__).parent / "results" / "tiny_reasoner.csv"
    )
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    three = arguments.problems // 4
    chosen = problems("test", 3, three) + problems("test", 4, arguments.problems - three)
    rows = []
    console = Console()
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("evaluating", total=len(arguments.models) * len(WAYS))
        for name in arguments.models:
            path = assets.path_of(name)
            tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
            model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
            for way, (methods, sampling) in WAYS.items():
                began = time.process_time()
                found = []
                for seed in arguments.seeds:
                    found += evaluate(
                        model, tokenizer, chosen, methods, sampling, seed, arguments.batch
                    )
                right = sum(r for r, _, _ in found) / len(found)
                # The same problems under several seeds are not independent: one seed's n counts.
                error = math.sqrt(right * (1 - right) / len(chosen))
                tokens = sum(t for _, t, _ in found) / len(found)
                latent = sum(x for _, _, x in found) / sum(t for _, t, _ in found)
                rows.append(
                    [name, way, len(found), round(100 * right, 1), round(100 * error, 1),
                     round(tokens, 1), round(100 * latent, 1), round(time.process_time() - began)]
                )  # fmt: skip
                progress.advance(task)
    arguments.csv.parent.mkdir(parents=True, exist_ok=True)
    with arguments.csv.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["model", "decoding", "n", "accuracy", "error", "tokens", "latent_share", "cpu_s"]
        )
        writer.writerows(rows)
    for name in arguments.models:
        print(f"\n**{name}**\n\n| decoding | accuracy % | tokens | latent steps % |")
        print("|---|---|---|---|")
        for model_name, way, _, right, error, tokens, latent, _ in rows:
            if model_name == name:
                print(f"| {way} | {right} ± {error} | {tokens:.0f} | {latent:.0f} |")


if __name__ == "__main__":
    main()
