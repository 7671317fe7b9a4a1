"""Model cards, written from the records of training and measuring.

Scope: text. Every number comes from ``training.json`` or ``results.json``; none is typed in.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenlens.evaluation.countdown import MAX_NUMBER, MAX_VALUE

MODE_NAMES = {
    "greedy": "greedy",
    "sample": "sampling, T 0.6, top-k 30, top-p 0.95",
    "soft": "soft thinking, T 0.6, top-k 30, top-p 0.95, 15 entries",
    "gumbel": "soft thinking with Gumbel-softmax noise, tau 0.5",
}
ABOUT = {
    "small": "The small model of the pair: fast, and wrong more often than right.",
    "large": "The large model of the pair, trained on discrete tokens only.",
    "latent": (
        "The large model's sibling, trained to read mixtures: a share of its thinking tokens was "
        "fed as the weighted mean of its own candidates, the teacher's token as the top entry."
    ),
}
ENTROPY = [
    ("thinking_tokens", "thinking tokens, mean"),
    ("waits", "backtracks (`wait`), mean"),
    ("closed", "thinking closed within the limit, %"),
    ("below_0.01", "thinking tokens below 0.01 nats, %"),
    ("from_0.3_to_1.2", "between 0.3 and 1.2 nats, %"),
    ("above_1.2", "above 1.2 nats, %"),
    ("entropy_first", "entropy of first tokens of steps, nats"),
    ("entropy_other", "entropy of other thinking tokens, nats"),
]


def accuracy_table(results: dict, sizes: list[str]) -> str:
    """Return the table of accuracies of ``sizes``, one row a seed and mode."""
    lines = [
        "| model | training seed | decoding | accuracy % (± standard error) | 3 / 4 numbers |",
        "|---|---|---|---|---|",
    ]
    for size in sizes:
        for seed, entry in sorted(results.get(size, {}).items()):
            for mode, row in entry["test"].items():
                lines.append(
                    f"| {size} | {seed} | {MODE_NAMES[mode]} "
                    f"| {row['accuracy']:.1f} ± {row['standard_error']:.1f} "
                    f"| {row['accuracy_3']:.1f} / {row['accuracy_4']:.1f} |"
                )
    return "\n".join(lines)


def entropy_table(test: dict) -> str:
    """Return the table of thinking length and entropy, one column a mode."""
    lines = ["| | " + " | ".join(test) + " |", "|---" * (len(test) + 1) + "|"]
    for key, name in ENTROPY:
        lines.append(f"| {name} | " + " | ".join(f"{row[key]:.3g}" for row in test.values()) + " |")
    return "\n".join(lines)


def card(size: str, record: dict, results: dict, seed: int) -> str:
    """Return the text of one model card."""
    entry = results[size][str(seed)]
    shape = record["shape"]
    number = next(iter(entry["test"].values()))["problems"]
    compared = ["small", "large"] if size != "latent" else ["large", "latent"]
    parent = record.get("parent")
    origin = (
        f"Continues from a base of the same shape (weights sha256 `{parent['weights_sha256']}`, "
        f"{parent['steps']} steps on discrete tokens, {parent['cpu_seconds']:.0f} CPU seconds), "
        "as its sibling does: large and latent saw the same further traces, one as tokens, the "
        "other as mixtures.\n\n"
        if parent
        else ""
    )
    return f"""# tiny-reasoner-{size}

{ABOUT[size]}

Qwen3 architecture, trained from scratch on Countdown with backtracking (`make 24 using 3,5,7,2`:
combine all numbers with `+ - *`, every result in 1..{MAX_VALUE}). It can
do nothing else: it is a test bed for decoding methods, small enough to ship.

* {shape["parameters"]:,} parameters: hidden {shape["hidden"]}, {shape["layers"]} layers,
  {shape["heads"]} head(s) of size {shape["head_size"]}, MLP {shape["mlp"]}, untied output, float16.
* Vocabulary: exactly {shape["vocab"]} entries, not padded. Positions up to 1024; training
  sequences had at most about 370 tokens.
* The model itself writes `<think>`; with `enable_thinking=False` the chat template writes an empty
  thinking block. Steps are separated by `"\\n\\n"`; `wait|...` goes back to an earlier state.

## Training

{origin}Seed {record["seed"]}, data seed {record["data_seed"]}, {record["steps"]} steps,
{record["trained_tokens"]:,} trained tokens, {record["cpu_seconds"]:.0f} CPU seconds on one thread
({record["wall_seconds"]:.0f} s of wall time on a machine shared with other work), float32, Muon and
AdamW, torch {record["torch"]}. All settings are in `training.json`.

* sha256 of the weights: `{record["weights_sha256"]}`
* sha256 of the training tokens: `{record["data_sha256"]}`

## Test split

{number} problems, a quarter with three numbers and the rest with four, that no choice was made
on (a development split served the choices). No training trace passes through a state that equals
one of them. At most 320 new tokens; an answer that is not finished counts as wrong. Standard
errors are those of the choice of problems. Soft modes feed every thinking token as a mixture and
decode the answer greedily.

{accuracy_table(results, compared)}

## Thinking length and entropy (this model, test split)

Entropy is of the full distribution at temperature 1, in nats.

{entropy_table(entry["test"])}

## Limits

Greedy decoding can repeat operations that failed already. Numbers above {MAX_NUMBER}, more
than four numbers and other tasks are outside of what it saw. Without thinking
(`enable_thinking=False`) it guesses.
"""


def write_cards(folders: dict[str, Path], results: dict, seed: int) -> None:
    """Write ``MODEL_CARD.md`` into every folder that holds a trained and measured model."""
    for size, folder in folders.items():
        record_file = folder / "training.json"
        if record_file.exists() and str(seed) in results.get(size, {}):
            record = json.loads(record_file.read_text())
            (folder / "MODEL_CARD.md").write_text(card(size, record, results, seed))
