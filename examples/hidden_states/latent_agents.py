"""LatentMAS (arXiv 2511.20639) in one process: agents hand on what they thought, and no word of it.

Every agent but the last thinks in vectors alone, a fixed number of steps; the keys and values of
its prompt and of its thoughts stay in the cache, behind which the next agent's prompt is written.
The last agent answers. As a control the same agents think in no steps: then their prompts alone are
handed on.

    python examples/hidden_states/latent_agents.py [--steps 8] [--problems 8]
"""

import argparse
from inspect import signature

import torch
from rollouts import load, text_of
from transformers import DynamicCache

from tokenlens.evaluation.countdown import Problem, check_answer, problems
from tokenlens.hf import generate_kwargs, traces

AGENTS = ("planner", "critic", "solver")
"""Of the paper's chain. A tiny reasoner knows one kind of prompt: all are asked the same."""


def answer(model, tokenizer, problem: Problem, steps: int) -> tuple[str, int, int]:
    """The last agent's text, the positions that it found in the cache, and latent steps."""
    prompt = tokenizer(
        text_of(tokenizer, problem), return_tensors="pt", add_special_tokens=False
    ).input_ids
    start, newline = tokenizer.encode("<think>", add_special_tokens=False)[0], "\n"
    spec = {
        "methods": [{"method": "latent_mas", "steps": max(1, steps), "placeholder": newline}],
        "phase": {"think_start": "<think>", "think_end": "</think>"},
    }
    # Its name before and since transformers 5.24
    named = "cache" if "cache" in signature(model.forward).parameters else "past_key_values"
    seen, cache, latent = prompt[:, :0], DynamicCache(config=model.config), 0
    for _ in AGENTS[:-1]:
        seen = torch.cat((seen, prompt, torch.tensor([[start]])), dim=1)
        if not steps:
            # The prompt alone is read.
            model(seen[:, cache.get_seq_length() :], use_cache=True, **{named: cache})
            continue
        kwargs = generate_kwargs(model, tokenizer, spec)
        # One token more than thoughts: what it stands for is not read, and goes.
        output = model.generate(
            seen, attention_mask=torch.ones_like(seen), **{named: cache}, do_sample=False,
            max_new_tokens=steps + 1, pad_token_id=model.config.eos_token_id,
            return_dict_in_generate=True, **kwargs,
        )  # fmt: skip
        seen = output.sequences[:, :-1]
        latent += traces(kwargs)[0].counts.latent_steps
    found = cache.get_seq_length()
    whole = torch.cat((seen, prompt), dim=1)
    output = model.generate(
        whole, attention_mask=torch.ones_like(whole), **{named: cache}, do_sample=False,
        max_new_tokens=256, pad_token_id=model.config.eos_token_id,
    )  # fmt: skip
    return tokenizer.decode(output[0, whole.shape[1] :]), found, latent


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", default="tiny-reasoner-latent")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--problems", type=int, default=8)
    arguments = parser.parse_args()
    model, tokenizer = load(arguments.model)
    asked = problems("dev", 3, arguments.problems)
    for name, steps in (("thoughts", arguments.steps), ("prompts alone", 0)):
        right, positions, latent = 0, 0, 0
        for problem in asked:
            text, found, thought = answer(model, tokenizer, problem, steps)
            right += check_answer(problem, text.replace("<|im_end|>", "").strip())
            positions, latent = positions + found, latent + thought
        print(
            f"{name}: {right} of {len(asked)} right, {latent} latent steps, {positions} positions"
            " found in the cache by the last agent"
        )


if __name__ == "__main__":
    main()
