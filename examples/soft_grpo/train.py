"""Train the tiny reasoner with SofT-GRPO, or with GRPO on tokens: the same loop, seeds and cost.

    python train.py /tmp/soft_grpo/soft-0 --method soft --seed 0
    python train.py /tmp/soft_grpo/tokens-0 --method tokens --seed 0

Killed, the same command goes on where the last checkpoint was, with the same numbers.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# vLLM in this process, so that its workers read the weights that were just written.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")

import torch
from engines import VLLM, HuggingFace
from policy import Decoding, Rows, advantages, log_probabilities, loss, ratio_error
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from tokenlens import assets
from tokenlens.evaluation.countdown import Problem, check_answer, problems, prompt
from tokenlens.evaluation.statistics import pass_at_k
from tokenlens.trace import Trace
from tokenlens.trace.files import write_text

CHECKPOINT, LOG, MODEL = "checkpoint.pt", "log.jsonl", "model"
MICRO_BATCH = 32


def seed_of(*parts: object) -> int:
    """A seed from what it is for."""
    return int(hashlib.sha256(repr(parts).encode()).hexdigest()[:8], 16)


class Training:
    """One run: a policy, an engine that rolls it out, an optimizer, a folder."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.folder = options, options.folder
        self.how = Decoding(soft=options.method == "soft")
        path = assets.path_of(options.model)
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        self.ends = set(self.model.generation_config.eos_token_id)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=options.rate, betas=(0.9, 0.95), weight_decay=0.0
        )
        self.pool = problems("train", options.numbers, seed=options.seed)
        self.step = 0
        self._resume()
        self.engine: Any = HuggingFace(self.model, self.tokenizer, self.how)
        if options.rollouts == "vllm":
            self._save_model()
            self.engine = VLLM(self.folder / MODEL, self.how, **options.engine_args)

    def run(self) -> None:
        """All steps that are left."""
        began = time.monotonic()
        first = self.step
        while self.step < self.options.steps:
            found = self.one_step()
            self.step += 1
            if self.options.dev and self.step % self.options.dev_every == 0:
                found["dev"] = self.on_dev()
            self._keep(found)
            left = (time.monotonic() - began) / (self.step - first)
            left *= self.options.steps - self.step
            print(f"{json.dumps(found)}  {left / 60:.0f} min left", flush=True)
        self._save_model()

    def one_step(self) -> dict[str, Any]:
        """Roll out, reward, update; returns what the log says of it."""
        start = self.step * self.options.problems
        chosen = [self.pool[(start + i) % len(self.pool)] for i in range(self.options.problems)]
        traces, prompts = self.roll_out(chosen, self.step)
        right = self.rewards(traces, chosen)
        rows = Rows.of(traces, prompts, self.how.entries)
        off, norm, useful = self.update(rows, advantages(right).flatten())
        return {
            "step": self.step,
            **passes(right),
            "tokens": float(rows.scored.sum()) / len(traces),
            "cut": sum(not self.ended(trace) for trace in traces) / len(traces),
            "useful": useful,
            "off": off,
            "norm": norm,
            "preemptions": self.engine.preemptions,
        }

    def roll_out(self, chosen: list[Problem], *of: object) -> tuple[list[Trace], list[list[int]]]:
        """A group for each problem: traces and prompts, a group's behind each other."""
        texts = [[{"role": "user", "content": prompt(problem)}] for problem in chosen]
        encoded = self.tokenizer.apply_chat_template(
            texts, add_generation_prompt=True, return_dict=True
        )["input_ids"]
        prompts = [ids for ids in encoded for _ in range(self.options.group)]
        seeds = [seed_of(self.options.seed, *of, row) for row in range(len(prompts))]
        return self.engine.roll_out(prompts, seeds, self.options.limit), prompts

    def rewards(self, traces: list[Trace], chosen: list[Problem]) -> Tensor:
        """``[problems, group]``: 1 for a right answer that ended by itself."""
        found = []
        for row, trace in enumerate(traces):
            text = self.tokenizer.decode([step.token for step in trace.steps])
            problem = chosen[row // self.options.group]
            found.append(float(self.ended(trace) and check_answer(problem, text)))
        return torch.tensor(found).view(len(chosen), self.options.group)

    def ended(self, trace: Trace) -> bool:
        """Whether the answer ended by itself."""
        return bool(trace.steps) and trace.steps[-1].token in self.ends

    def update(self, rows: Rows, advantage: Tensor) -> tuple[float, float, int]:
        """One batch; how far the ratio was off at its start, the last gradient, useful rows.

        Before the first update the ratio against what the engine recorded is 1: whatever it is off
        by is a fault of the replay, or weights that the engine has not got.
        """
        total, off, norm = rows.scored.sum(), 0.0, 0.0
        useful = advantage.nonzero().flatten()
        useful = useful[rows.lengths[useful].argsort(descending=True, stable=True)]
        batches = [rows.pick(part) for part in useful.split(MICRO_BATCH)] if len(useful) else []
        gains = useful.split(MICRO_BATCH)
        old: list[Tensor] = []
        for update in range(self.options.updates):
            for number, (batch, picked) in enumerate(zip(batches, gains)):
                new = log_probabilities(self.model, batch, self.how)
                if update == 0:
                    old.append(new.detach())
                    off = max(off, ratio_error(new, batch))
                part = loss(new, old[number], advantage[picked], batch.scored) / total
                part.backward()
            if batches:
                norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0))
                self.optimizer.step()
                self.optimizer.zero_grad()
        self.engine.load(self.model)
        return off, norm, len(useful)

    def on_dev(self) -> dict[str, float]:
        """pass@1 and pass@k on problems that are not trained on, decoded as the rollouts are."""
        chosen = problems("dev", self.options.numbers, self.options.dev)
        traces, _ = self.roll_out(chosen, "dev", self.step)
        return passes(self.rewards(traces, chosen))

    def _keep(self, found: dict[str, Any]) -> None:
        """The log and the checkpoint, which is complete or not there."""
        with (self.folder / LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps(found) + "\n")
        if self.step % self.options.save_every and self.step != self.options.steps:
            return
        state = {
            "options": comparable(self.options),
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        partial = self.folder / f"{CHECKPOINT}.part"
        torch.save(state, partial)
        partial.replace(self.folder / CHECKPOINT)

    def _resume(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        path, log = self.folder / CHECKPOINT, self.folder / LOG
        if path.exists():
            state = torch.load(path, weights_only=True)
            if state["options"] != comparable(self.options):
                raise SystemExit(f"{self.folder} holds another run; choose another folder")
            self.step = state["step"]
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
        # Steps behind the checkpoint come again.
        lines = log.read_text(encoding="utf-8").splitlines(True) if log.exists() else []
        write_text(log, "".join(lines[: self.step]))

    def _save_model(self) -> None:
        self.model.save_pretrained(self.folder / MODEL)
        self.tokenizer.save_pretrained(self.folder / MODEL)


def passes(right: Tensor) -> dict[str, float]:
    """The mean reward, which is pass@1, and pass@k with k the group."""
    k = right.shape[1]
    whole = [pass_at_k(k, int(group.sum()), k) for group in right]
    return {"reward": float(right.mean()), f"pass@{k}": sum(whole) / len(whole)}


def comparable(options: argparse.Namespace) -> dict[str, Any]:
    """What the numbers depend on; a run may be made longer."""
    free = ("folder", "steps", "save_every")
    return {name: value for name, value in vars(options).items() if name not in free}


def options_of(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--method", choices=("soft", "tokens"), default="soft")
    parser.add_argument("--model", default="tiny-reasoner-latent")
    parser.add_argument("--rollouts", choices=("hf", "vllm"), default="hf")
    parser.add_argument("--engine-args", type=json.loads, default={}, help="vLLM's, as JSON")
    for name, value, least, said in (
        ("seed", 0, 0, "of problems, noise and sampling"),
        ("steps", 75, 0, "batches of rollouts"),
        ("problems", 16, 1, "a step"),
        ("group", 8, 2, "rollouts of a problem"),
        ("numbers", 3, 2, "of a problem"),
        ("limit", 112, 1, "tokens of a rollout"),
        ("updates", 1, 1, "of a batch; see the README before you take more"),
        ("dev", 32, 0, "held-out problems for the curve; 0: none"),
        ("dev-every", 25, 1, "steps"),
        ("save-every", 5, 1, "steps between two checkpoints"),
    ):
        parser.add_argument(
            f"--{name}", type=at_least(least), default=value, help=f"{said} ({value})"
        )
    parser.add_argument("--rate", type=float, default=5e-4, help="of AdamW")
    return parser.parse_args(arguments)


def at_least(least: int) -> Callable[[str], int]:
    """A type of whole numbers for the command line."""

    def number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"got {text}; allowed: at least {least}")
        return int(text)

    return number


if __name__ == "__main__":
    torch.set_num_threads(1)
    Training(options_of()).run()
