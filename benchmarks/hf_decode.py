"""Milliseconds per decode step of stock ``generate()`` and of soft ``generate()``, side by side.

One random Qwen3 model, large enough that a step takes 20 ms or more. The ways take turns, each
round in another order, so that a busy machine slows all of them; ``stock again`` is the noise of
the comparison. Before a time is printed, the soft run with ``top_k=1`` must give the tokens of the
stock run. Figures are quantiles over the steps of all rounds; the overhead is the ratio of a run's
median step to that of the round's stock run, as quantiles over the rounds.

    python benchmarks/hf_decode.py [--hidden 1024] [--layers 12] [--vocab 32000] [--rounds 20]
"""

import argparse
import csv
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import AutoModelForCausalLM, Qwen3Config, StoppingCriteria, StoppingCriteriaList

from tokenlens.hf import generate_kwargs
from tokenlens.spec import DecodingSpec, GumbelNoise, PhaseConfig, SoftThinking

PROMPT_TOKENS = 16
QUANTILES = (0.2, 0.5, 0.8)


class Clock(StoppingCriteria):
    """Notes when each step has sampled."""

    def __init__(self):
        self.times = []

    def __call__(self, input_ids, scores, **kwargs):
        self.times.append(time.perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool)

    def steps(self):
        """Milliseconds between steps, without the prompt's and the first one's."""
        times = torch.tensor(self.times, dtype=torch.float64)
        return (times[2:] - times[1:-1]) * 1000


def build(arguments):
    """A random model whose every step is the same work."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=arguments.vocab,
        hidden_size=arguments.hidden,
        intermediate_size=3 * arguments.hidden,
        num_hidden_layers=arguments.layers,
        num_attention_heads=arguments.hidden // 64,
        num_key_value_heads=arguments.hidden // 128,
        head_dim=64,
        eos_token_id=None,
        pad_token_id=0,
    )
    return AutoModelForCausalLM.from_config(config).eval()


def spec(arguments, **settings):
    """Latent from the first token to the last: the end marker is a token that is never sampled."""
    noise = (GumbelNoise(),) if settings.pop("noise", False) else ()
    method = SoftThinking(start="first_token", **settings)
    # The end marker is a token that a random model does not come to by chance.
    return DecodingSpec(
        methods=(method, *noise), phase=PhaseConfig(think_start=(1,), think_end=(2,))
    )


def run(model, ids, steps, what):
    """One timed call; returns the tokens and the step times."""
    clock = Clock()
    kwargs = {"stopping_criteria": StoppingCriteriaList([clock])}
    if what is not None:
        kwargs = generate_kwargs(model, None, what, stopping_criteria=[clock])
    out = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=steps,
        min_new_tokens=steps,
        **kwargs,
    )
    return out, clock.steps()


def quantiles(values):
    """The three quantiles as numbers."""
    return [float(torch.quantile(values, q)) for q in QUANTILES]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--vocab", type=int, default=32_000)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--csv", type=Path, help="write the figures here too")
    arguments = parser.parse_args()
    console = Console()
    model = build(arguments)
    ways = {
        "stock": None,
        "stock again": None,
        "soft": spec(arguments),
        "soft + Gumbel": spec(arguments, noise=True),
        # Needs the entropy of the whole vocabulary; the threshold is never reached.
        "soft + Cold Stop": spec(arguments, cold_stop={"entropy_threshold": 1e-9}),
    }
    rows = []
    table = Table(
        "batch", "way", "ms/step q20", "q50", "q80", "overhead q20", "q50", "q80",
        title=f"hidden {arguments.hidden}, {arguments.layers} layers, vocabulary {arguments.vocab},"
        f" {torch.get_num_threads()} threads, {arguments.rounds} rounds",
    )  # fmt: skip
    for batch in arguments.batches:
        ids = torch.randint(3, arguments.vocab, (batch, PROMPT_TOKENS))
        stock, _ = run(model, ids, 8, None)
        top1, _ = run(model, ids, 8, spec(arguments, top_k=1))
        assert torch.equal(stock, top1), "soft with top_k=1 must give the stock tokens"
        times = {way: [] for way in ways}
        turns = list(ways)
        for _ in track(range(arguments.rounds), f"batch {batch}", console=console, transient=True):
            for way in turns:
                times[way].append(run(model, ids, arguments.steps, ways[way])[1])
            turns.append(turns.pop(0))
        base = torch.stack([step.median() for step in times["stock"]])
        for way, measured in times.items():
            ratio = torch.stack([step.median() for step in measured]) / base - 1
            steps, over = quantiles(torch.cat(measured)), quantiles(ratio)
            rows.append([batch, way, *steps, *over])
            shown = [f"{value:.2f}" for value in steps]
            shown += [f"{value:+.1%}" for value in over] if way != "stock" else ["", "", ""]
            table.add_row(str(batch), way, *shown)
    console.print(table)
    if arguments.csv:
        with arguments.csv.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(
                ["batch", "way", "ms_q20", "ms_q50", "ms_q80", "over_q20", "over_q50", "over_q80"]
            )
            writer.writerows(rows)


if __name__ == "__main__":
    main()
