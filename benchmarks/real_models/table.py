"""What concept tokens do to pretrained models that never saw one: ``python table.py --prompts 8``.

For each way to decode: the loss of the visible text under the model itself, its repetition, how
much of it is what greedy decoding writes, and how sure the model is on the way. Prints Markdown,
whatever it says.
"""

import argparse
import statistics
import time

import page
import torch
from common import LATENT, NAMES, TOP1, generate, load, prompts, spec

LENGTHS = (16, 64, 256)
SAMPLING = {"do_sample": True, "temperature": 0.6, "top_k": 30, "top_p": 0.95}


def loss(model, prompt, ids):
    """Nats a token of a visible text, all tokens fed as tokens."""
    if not ids:
        return None
    with torch.no_grad():
        logits = model(torch.tensor([prompt + ids])).logits[0].float()
    picked = logits.log_softmax(-1)[len(prompt) - 1 : -1]
    return -picked.gather(1, torch.tensor(ids)[:, None]).mean().item()


def repetition(ids, size=4):
    """Share of runs of four tokens that stood in the text before."""
    runs = [tuple(ids[i : i + size]) for i in range(len(ids) - size + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else None


def agreement(ids, greedy, length):
    """Share of the first tokens that greedy decoding writes at the same place."""
    both = list(zip(ids[:length], greedy[:length]))
    longer = min(length, max(len(ids), len(greedy)))
    return sum(a == b for a, b in both) / longer if longer else 1.0


def mean(values):
    """Of those that there are."""
    known = [one for one in values if one is not None]
    return statistics.fmean(known) if known else float("nan")


def figures(model, rows, texts, greedy, found, lengths):
    """One line of the table."""
    steps = [step for trace in found or () for step in trace.steps]
    entries = [len(step.entries) for step in steps if step.latent]
    entropies = [step.entropy for step in steps if step.entropy is not None]
    return [
        f"{mean(loss(model, *pair) for pair in zip(rows, texts)):.2f}",
        f"{100 * mean(map(repetition, texts)):.0f}",
        *(f"{100 * mean(agreement(a, b, n) for a, b in zip(texts, greedy)):.0f}" for n in lengths),
        f"{mean(map(len, texts)):.0f}",
        f"{mean(entropies):.2f} / {statistics.median(entropies):.2f}" if entropies else "",
        f"{mean(entries):.1f}" if entries else "",
    ]


def table(name, count, tokens):
    """The table of one model."""
    model, tokenizer = load(name)
    rows = prompts(name, tokenizer, count)
    torch.manual_seed(0)
    # One batch: top1 writes what greedy decoding writes, so that the engine may sample the rest.
    arms = {"greedy (top1)": LATENT[TOP1], "sampling, T 0.6": None}
    arms |= {label: methods for label, methods in LATENT.items() if label != TOP1}
    batch = [
        (prompt, methods and spec(methods, seed))
        for methods in arms.values()
        for seed, prompt in enumerate(rows)
    ]
    texts, found = generate(model, tokenizer, batch, max_new_tokens=tokens, **SAMPLING)
    lengths = [length for length in LENGTHS if length <= tokens]
    head = [
        "decoding", "loss, nats", "repetition %", *(f"= greedy, {n} %" for n in lengths), "tokens",
        "entropy, mean / median", "entries",
    ]  # fmt: skip
    lines = [f"**{name}**, {count} prompts, at most {tokens} new tokens\n"]
    lines += [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for number, label in enumerate(arms):
        own = slice(number * count, (number + 1) * count)
        recorded = [trace for trace in found[own] if trace is not None]
        cells = figures(model, rows, texts[own], texts[:count], recorded, lengths)
        lines.append(f"| {' | '.join([label, *cells])} |")
    return "\n".join(lines)


def main():
    """Both models, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--models", nargs="+", default=NAMES)
    parser.add_argument("--page", action="store_true", help=f"write {page.PAGE.name}")
    options = parser.parse_args()
    began, tables = time.time(), []
    for name in options.models:
        tables.append(table(name, options.prompts, options.tokens))
        print(tables[-1], flush=True)
    size = f"`table.py --prompts {options.prompts} --tokens {options.tokens}`"
    took = f"{(time.time() - began) / 60:.0f} minutes on {torch.get_num_threads()} threads"
    if options.page:
        text = "\n\n".join(tables)
        page.replace("table", f"{size}, {took}, torch {torch.__version__}.\n\n{text}")


if __name__ == "__main__":
    main()
