"""Measure the tiny reasoner on a split: accuracy, thinking length, entropy.

Usage: ``python measure.py MODEL_DIR --split dev --modes greedy sample soft gumbel``
"""

from __future__ import annotations

import argparse
import json
from math import sqrt
from pathlib import Path

import torch
from decode import Decoding, Transcript, decode
from model import Shape, TinyQwen3
from safetensors.torch import load_file
from tokenizer import END_THINK, IM_END, STEP_SEPARATOR, THINK, build_tokenizer, prompt_text

from tokenlens.evaluation.countdown import Problem, Split, check_answer, problems, prompt

#: Problems of each size: a quarter with three numbers, the rest with four.
SIZES: dict[str, dict[int, int]] = {"dev": {3: 110, 4: 330}, "test": {3: 250, 4: 750}}
MAX_NEW_TOKENS = 320


def load_model(folder: Path) -> TinyQwen3:
    """Load a saved model into the lean forward, in float32."""
    config = json.loads((folder / "config.json").read_text())
    shape = Shape(
        hidden=config["hidden_size"],
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        mlp=config["intermediate_size"],
        vocab=config["vocab_size"],
    )
    model = TinyQwen3(shape)
    weights = load_file(folder / "model.safetensors")
    model.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    return model


def split_problems(split: Split, share: float = 1.0) -> dict[int, list[Problem]]:
    """Return the problems that a split is measured on, or the first ``share`` of them."""
    return {
        count: problems(split, count, size)[: max(1, round(size * share))]
        for count, size in SIZES[split].items()
    }


def measure(
    model: TinyQwen3,
    pools: dict[int, list[Problem]],
    how: Decoding,
    *,
    thinking: bool = True,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> dict:
    """Decode every problem and return the figures as a flat dictionary (per cent, tokens, nats)."""
    tokenizer = build_tokenizer()
    ids = tokenizer.convert_tokens_to_ids
    markers = {"end": ids(IM_END), "think": ids(THINK), "end_think": ids(END_THINK)}
    right: dict[int, list[bool]] = {}
    transcripts: list[Transcript] = []
    for count, chosen in pools.items():
        texts = [prompt_text(prompt(problem), thinking) for problem in chosen]
        encoded = torch.tensor(tokenizer(texts, add_special_tokens=False)["input_ids"])
        found = decode(model, encoded, how, max_new_tokens=max_new_tokens, **markers)
        replies = tokenizer.batch_decode([t.ids for t in found], skip_special_tokens=False)
        # Without an end mark the reply was cut off: there is no answer.
        right[count] = [
            IM_END in reply and check_answer(problem, reply)
            for problem, reply in zip(chosen, replies, strict=True)
        ]
        transcripts += found
    every = [value for values in right.values() for value in values]
    accuracy = sum(every) / len(every)
    result = {
        "accuracy": 100 * accuracy,
        "standard_error": 100 * sqrt(accuracy * (1 - accuracy) / len(every)),
        "problems": len(every),
        **{f"accuracy_{count}": 100 * sum(v) / len(v) for count, v in right.items()},
    }
    if thinking:
        separator, wait = ids(STEP_SEPARATOR), ids("wait")
        result |= _thinking_figures(transcripts, markers, separator, wait)
    return {name: round(value, 3) for name, value in result.items()}


def _thinking_figures(transcripts, markers: dict[str, int], separator: int, wait: int) -> dict:
    first: list[float] = []
    other: list[float] = []
    lengths, waits, closed = [], 0, 0
    for transcript in transcripts:
        inside, length, previous = False, 0, -1
        for token, entropy in zip(transcript.ids, transcript.entropies, strict=True):
            if token == markers["end_think"]:
                closed += 1
                break
            if inside:
                length += 1
                starts = previous in (separator, markers["think"])
                # "<think>\n" opens the thinking: the step begins after the newline.
                if previous == markers["think"]:
                    other.append(entropy)
                    previous = separator
                    continue
                (first if starts else other).append(entropy)
                waits += token == wait
            inside = inside or token == markers["think"]
            previous = token
        lengths.append(length)
    every = torch.tensor(first + other)
    spread = torch.tensor(lengths).float()
    total = max(len(every), 1)
    return {
        "thinking_tokens": spread.mean().item(),
        "thinking_tokens_standard_error": spread.std().item() / len(lengths) ** 0.5,
        "waits": waits / len(transcripts),
        "closed": 100 * closed / len(transcripts),
        "below_0.01": 100 * (every < 0.01).sum().item() / total,
        "from_0.3_to_1.2": 100 * ((every >= 0.3) & (every <= 1.2)).sum().item() / total,
        "above_1.2": 100 * (every > 1.2).sum().item() / total,
        "entropy_first": sum(first) / max(len(first), 1),
        "entropy_other": sum(other) / max(len(other), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--split", choices=list(SIZES), default="dev")
    parser.add_argument("--share", type=float, default=1.0, help="first part of the split")
    parser.add_argument("--modes", nargs="+", default=["greedy", "sample"])
    parser.add_argument("--seed", type=int, default=0, help="of sampling and noise")
    parser.add_argument("--no-thinking", action="store_true")
    parser.add_argument("--out", type=Path, help="write the figures here as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = load_model(arguments.folder)
    pools = split_problems(arguments.split, arguments.share)
    results = {}
    for mode in arguments.modes:
        how = Decoding(mode=mode, seed=arguments.seed)
        results[mode] = measure(model, pools, how, thinking=not arguments.no_thinking)
        print(mode, json.dumps(results[mode]), flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
