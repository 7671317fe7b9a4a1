"""EAST's steering vector (arXiv 2406.00244) for a reasoner that writes steps, from rollouts.

A decision is the beginning of a step of the thinking, an action the step that the model writes
there. The vector points to where the actions that are sampled have the higher entropy.

    python examples/hidden_states/east_vector.py tiny-reasoner-small vector.safetensors
    TOKENLENS_FILES='{"east": "vector.safetensors"}' tokenlens eval ...

``--control random`` writes a random vector of the same norm instead, for comparison.
"""

import argparse
import re
from collections import Counter
from math import log
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tokenlens import assets
from tokenlens.evaluation.countdown import problems, prompt
from tokenlens.methods.east.step import steering_vector

STEP = "\n\n"
ACTION = re.compile(r"\s*(wait\S*|[0-9]+ *[-+*] *[0-9]+)")
DECISIONS = 6
"""Of a run, at most."""


def entropy_of(actions: list[str | None]) -> float:
    """Nats, of the actions that could be parsed."""
    counts = Counter(action for action in actions if action is not None)
    total = sum(counts.values())
    return sum(-n / total * log(n / total) for n in counts.values())


def parse(text: str) -> str | None:
    """The action that a step begins with."""
    found = ACTION.match(text)
    return None if found is None else found[1].replace(" ", "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("model")
    parser.add_argument("out", type=Path)
    parser.add_argument("--layer", type=int, help="the middle one by default")
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--samples", type=int, default=25)
    parser.add_argument("--control", choices=["random"])
    arguments = parser.parse_args()
    path = assets.path_of(arguments.model)
    tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    layer = arguments.layer or max(1, model.config.num_hidden_layers // 2)
    if not 1 <= layer < model.config.num_hidden_layers:
        parser.error(f"layer: got {layer}; allowed: 1 to {model.config.num_hidden_layers - 1}")
    (step,) = tokenizer.encode(STEP, add_special_tokens=False)
    torch.manual_seed(0)
    representations, entropies = [], []
    for problem in problems("train", 3, arguments.runs):
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt(problem)}],
            tokenize=False,
            add_generation_prompt=True,
        )
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
        run = model.generate(
            ids, do_sample=True, temperature=0.6, max_new_tokens=96, pad_token_id=0
        )[0]
        begins = [i + 1 for i in range(ids.shape[1], len(run) - 1) if run[i] == step][:DECISIONS]
        with torch.no_grad():
            states = model(run[None], output_hidden_states=True).hidden_states[layer][0]
        found = []
        for begin in begins:
            sampled = model.generate(
                run[None, :begin], do_sample=True, temperature=1.0, top_k=0, max_new_tokens=10,
                eos_token_id=[step, model.config.eos_token_id], pad_token_id=step,
                num_return_sequences=arguments.samples,
            )  # fmt: skip
            found.append(entropy_of([parse(t) for t in tokenizer.batch_decode(sampled[:, begin:])]))
        if begins:
            representations.append(states[[begin - 1 for begin in begins]])
            entropies.append(torch.tensor(found))
    vector = steering_vector(representations, entropies).float()
    if arguments.control == "random":
        noise = torch.randn(len(vector))
        vector = noise * (vector.norm() / noise.norm())
    save_file({"vector": vector}, arguments.out, {"layer": str(layer), "model": arguments.model})
    decisions = sum(map(len, entropies))
    mean = float(torch.cat(entropies).mean())
    print(f"{arguments.out}: layer {layer}, norm {vector.norm():.4f}, {decisions} decisions of")
    print(f"{len(entropies)} runs, mean entropy of an action {mean:.3f} nats")


if __name__ == "__main__":
    main()
