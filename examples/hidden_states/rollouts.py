"""Rollouts of a tiny reasoner, with what its layers leave: what the scripts here learn from."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from tokenlens import assets
from tokenlens.evaluation.countdown import Problem, problems, prompt

MAX_NEW_TOKENS = 256


class Rollout(NamedTuple):
    """One answer.

    Attributes
    ----------
    ids
        ``[tokens]``, the prompt's among them, up to the end of the text.
    begin
        Where the prompt ends.
    end
        The place of the end of thinking; ``None`` if there is none.
    """

    problem: Problem
    ids: Tensor
    begin: int
    end: int | None


def load(name: str) -> tuple[Any, Any]:
    """A model in float32, and its tokenizer."""
    path = assets.path_of(name)
    tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval(), tokenizer


def text_of(tokenizer: Any, problem: Problem) -> str:
    """The prompt as the model is asked."""
    turn = [{"role": "user", "content": prompt(problem)}]
    text: str = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    return text


def questions(number: int) -> list[Problem]:
    """Problems of the training split in any order, a quarter with three numbers."""
    few = number // 4
    asked = [*problems("train", 3, few), *problems("train", 4, number - few)]
    return [asked[int(place)] for place in torch.randperm(number)]


@torch.no_grad()
def roll(
    model: Any, tokenizer: Any, asked: list[Problem], temperature: float, batch: int = 64
) -> list[Rollout]:
    """One answer to each problem."""
    (end,) = tokenizer.encode("</think>", add_special_tokens=False)
    found = []
    for start in range(0, len(asked), batch):
        part = asked[start : start + batch]
        inputs = tokenizer(
            [text_of(tokenizer, one) for one in part],
            return_tensors="pt", padding=True, add_special_tokens=False,
        )  # fmt: skip
        output = model.generate(
            input_ids=inputs.input_ids, attention_mask=inputs.attention_mask, do_sample=True,
            temperature=temperature, top_k=0, max_new_tokens=MAX_NEW_TOKENS,
            pad_token_id=model.config.eos_token_id,
        )  # fmt: skip
        for row, mask, problem in zip(output, inputs.attention_mask, part, strict=True):
            ids = row[len(mask) - int(mask.sum()) :]
            begin = int(mask.sum())
            stops = (ids[begin:] == model.config.eos_token_id).nonzero()
            ids = ids[: begin + int(stops[0]) + 1] if len(stops) else ids
            ends = (ids[begin:] == end).nonzero()
            found.append(Rollout(problem, ids, begin, begin + int(ends[0]) if len(ends) else None))
    return found


@torch.no_grad()
def states_of(model: Any, ids: Tensor) -> Tensor:
    """What every layer leaves, ``[tokens, layers + 1, hidden]``, the last after the final norm."""
    found = model(ids[None], output_hidden_states=True).hidden_states
    return torch.stack([layer[0] for layer in found], dim=1)
