"""Train one tiny reasoner: ``python train.py --size small|base|large|latent --seed N --out DIR``.

Scope: from a seed to a folder that ``AutoModelForCausalLM`` loads. One thread, float32: the same
seed gives the same bytes on the same machine and torch release.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from data import Batch, Data
from decode import Decoding
from latent import mixture_inputs
from measure import load_model, measure, split_problems
from model import Shape, TinyQwen3, describe, hf_config
from optimizer import Muon
from safetensors.torch import save_file
from tokenizer import IM_END, PAD, build_tokenizer


@dataclass(frozen=True)
class Recipe:
    """Hyper-parameters of one model."""

    shape: Shape
    steps: int
    batch_tokens: int
    # Learning rate of Muon and AdamW alike; Muon's update is scaled to AdamW's size.
    rate: float
    warmup: int
    # Part of the steps after which the rate falls linearly to zero.
    decay_from: float
    # Traces of the easy first part of the curriculum.
    early_traces: int


SMALL = Shape(hidden=64, layers=2, heads=1, mlp=192)
LARGE = Shape(hidden=128, layers=4, heads=2, mlp=384)
RECIPES = {
    "small": Recipe(SMALL, 1300, 2400, 8e-3, 40, 0.4, 8_000),
    "base": Recipe(LARGE, 2000, 2000, 8e-3, 40, 0.4, 8_000),
    "large": Recipe(LARGE, 400, 2000, 5e-3, 10, 0.2, 0),
    "latent": Recipe(LARGE, 400, 2000, 5e-3, 10, 0.2, 0),
}
#: Large and latent continue from the float16 weights of the same base, on the same new traces, for
#: the same number of steps: one reads tokens, the other mixtures. That is all they differ in.
CONTINUED = ("large", "latent")
WEIGHT_DECAY = 0.01
CHECKPOINTS = 2
REPORT_SECONDS = 20.0


def rate_factor(step: int, recipe: Recipe) -> float:
    """Return the learning rate at ``step`` as a part of the full one."""
    decay_start = recipe.decay_from * recipe.steps
    falling = (recipe.steps - step) / max(recipe.steps - decay_start, 1)
    return min(1.0, (step + 1) / recipe.warmup, falling)


def optimizers(model: TinyQwen3, rate: float) -> list[torch.optim.Optimizer]:
    """Return Muon for the layers' matrices and AdamW for embeddings, head and norms."""
    matrices = [p for p in model.model.layers.parameters() if p.dim() == 2]
    inside = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in inside]
    return [
        Muon(matrices, lr=rate, weight_decay=WEIGHT_DECAY),
        torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def loss_of(model: TinyQwen3, batch: Batch, inputs: torch.Tensor) -> torch.Tensor:
    """Return the weighted cross-entropy (nats) of the teacher's next tokens."""
    counted = batch.weights[:, :-1] > 0
    logits = model.lm_head(model(inputs)[:, :-1][counted])
    weights = batch.weights[:, :-1][counted]
    losses = F.cross_entropy(logits, batch.ids[:, 1:][counted], reduction="none")
    return (losses * weights).sum() / weights.sum()


def train(size: str, seed: int, recipe: Recipe, parent: Path | None, checkpoints: int):
    """Train and return the model and the record of the run."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    model = TinyQwen3(recipe.shape)
    if parent is None:
        model.initialise(seed)
    else:
        model = load_model(parent)
    # A continued model must not see the traces again that its parent was trained on.
    data_seed = seed + (1000 if size in CONTINUED else 0)
    data = Data(build_tokenizer(), data_seed, recipe.batch_tokens, recipe.early_traces)
    noise = torch.Generator().manual_seed(data_seed)
    steppers = optimizers(model, recipe.rate)
    dev = split_problems("dev", 0.2) if checkpoints else {}
    started, cpu_started, reported = time.time(), time.process_time(), time.time()
    tokens = 0
    for step, batch in enumerate(data):
        if step == recipe.steps:
            break
        for stepper in steppers:
            for group in stepper.param_groups:
                group["lr"] = recipe.rate * rate_factor(step, recipe)
        inputs = batch.ids
        if size == "latent":
            inputs = mixture_inputs(model, batch, noise)
        loss = loss_of(model, batch, inputs)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for stepper in steppers:
            stepper.step()
            stepper.zero_grad(set_to_none=True)
        tokens += int((batch.weights > 0).sum())
        if time.time() - reported > REPORT_SECONDS or step == recipe.steps - 1:
            reported = time.time()
            speed = tokens / (reported - started)
            print(f"{size} step {step + 1} loss {loss.item():.4f} {speed:.0f} tokens/s", flush=True)
        if checkpoints and (step + 1) % max(recipe.steps // checkpoints, 1) == 0:
            how = Decoding(mode="gumbel" if size == "latent" else "sample")
            figures = measure(model, dev, how, max_new_tokens=200)
            print(f"{size} step {step + 1} dev {how.mode} {figures['accuracy']:.1f} %", flush=True)
    record = {
        "size": size,
        "seed": seed,
        "data_seed": data_seed,
        "data_sha256": data.sha256,
        "steps": recipe.steps,
        "batch_tokens": recipe.batch_tokens,
        "rate": recipe.rate,
        "warmup_steps": recipe.warmup,
        "decay_from": recipe.decay_from,
        "early_traces": recipe.early_traces,
        "weight_decay": WEIGHT_DECAY,
        "shape": describe(recipe.shape),
        "trained_tokens": tokens,
        "wall_seconds": round(time.time() - started, 1),
        "cpu_seconds": round(time.process_time() - cpu_started, 1),
        "torch": torch.__version__.split("+")[0],
    }
    return model, record


def save(model: TinyQwen3, record: dict, out: Path) -> dict:
    """Write weights, configurations, tokenizer and record; return the record with the hash."""
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer()
    end, pad = tokenizer.convert_tokens_to_ids([IM_END, PAD])
    weights = {name: t.detach().half().contiguous() for name, t in model.state_dict().items()}
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    # safetensors writes for the owner alone; an installed package is read by everyone.
    (out / "model.safetensors").chmod(0o644)
    generation = {"eos_token_id": [end, pad], "pad_token_id": pad}
    _write(out / "config.json", hf_config(model.shape, end, pad))
    _write(out / "generation_config.json", generation)
    tokenizer.save_pretrained(out)
    # transformers 5 saves its own class name, which 4.57 does not know.
    saved = json.loads((out / "tokenizer_config.json").read_text())
    saved["tokenizer_class"] = "PreTrainedTokenizerFast"
    saved["chat_template"] = tokenizer.chat_template
    saved.pop("backend", None)
    _write(out / "tokenizer_config.json", saved)
    digest = hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()
    record = {**record, "weights_sha256": digest}
    _write(out / "training.json", record)
    return record


def _write(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=list(RECIPES), required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, help="fewer steps than the recipe (for tests)")
    parser.add_argument("--parent", type=Path, help="trained base; for --size large and latent")
    parser.add_argument("--checkpoints", type=int, default=CHECKPOINTS)
    arguments = parser.parse_args()
    if (arguments.size in CONTINUED) != (arguments.parent is not None):
        parser.error(f"--parent goes with {CONTINUED}, and only with them: name the base's folder")
    recipe = RECIPES[arguments.size]
    if arguments.steps is not None:
        recipe = Recipe(**{**vars(recipe), "steps": arguments.steps})
    model, record = train(
        arguments.size, arguments.seed, recipe, arguments.parent, arguments.checkpoints
    )
    if arguments.parent is not None:
        record["parent"] = json.loads((arguments.parent / "training.json").read_text())
    record = save(model, record, arguments.out)
    print(f"{arguments.size} weights sha256 {record['weights_sha256']}", flush=True)


if __name__ == "__main__":
    main()
