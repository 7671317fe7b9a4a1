"""Train DiffAdapt's probe (arXiv 2510.19669) for a tiny reasoner, from its own answers.

A question is easy where most of the model's samples are right, hard where few are, normal between.
(The paper looks at the entropy of the samples too; its bounds are not known.)

    python examples/hidden_states/difficulty_probe.py tiny-reasoner-small probe.safetensors

``--control shuffled`` learns from labels that were dealt out anew, for comparison.
"""

import argparse
from pathlib import Path

import torch
from rollouts import load, questions, roll, states_of, text_of
from safetensors.torch import save_file
from torch import nn

from tokenlens.evaluation.countdown import check_answer
from tokenlens.methods.diffadapt.step import CLASSES, probe

WIDTH = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("model")
    parser.add_argument("out", type=Path)
    parser.add_argument("--questions", type=int, default=256)
    parser.add_argument("--samples", type=int, default=6)
    parser.add_argument("--easy", type=float, default=0.8, help="share of right samples, at least")
    parser.add_argument("--hard", type=float, default=0.2, help="share of right samples, at most")
    parser.add_argument("--control", choices=["shuffled"])
    arguments = parser.parse_args()
    torch.manual_seed(0)
    model, tokenizer = load(arguments.model)
    asked = questions(arguments.questions)
    right = torch.zeros(len(asked))
    for _ in range(arguments.samples):
        for place, one in enumerate(roll(model, tokenizer, asked, 0.8)):
            answer = tokenizer.decode(one.ids[(one.end or len(one.ids)) + 1 :])
            right[place] += check_answer(one.problem, answer.replace("<|im_end|>", "").strip())
    share = right / arguments.samples
    labels = torch.full((len(asked),), CLASSES.index("normal"))
    labels[share >= arguments.easy] = CLASSES.index("easy")
    labels[share <= arguments.hard] = CLASSES.index("hard")
    if arguments.control == "shuffled":
        labels = labels[torch.randperm(len(labels))]
    hidden = []
    for one in asked:
        ids = tokenizer(text_of(tokenizer, one), return_tensors="pt", add_special_tokens=False)
        hidden.append(states_of(model, ids.input_ids[0])[-1, -1])
    x = torch.stack(hidden)
    first, second = nn.Linear(x.shape[1], WIDTH), nn.Linear(WIDTH, len(CLASSES))
    parameters = [first.weight, first.bias, second.weight, second.bias]
    order = torch.randperm(len(x))
    train, test = order[len(x) // 5 :], order[: len(x) // 5]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        likely = probe(x[train], *parameters).gather(1, labels[train, None])
        (-likely.clamp(min=1e-9).log().mean()).backward()
        optimizer.step()
    with torch.no_grad():
        hit = float((probe(x[test], *parameters).argmax(1) == labels[test]).float().mean())
    names = ("w1", "b1", "w2", "b2")
    tensors = {n: p.detach().clone() for n, p in zip(names, parameters, strict=True)}
    save_file(tensors, arguments.out, {"model": arguments.model})
    counts = torch.bincount(labels, minlength=3).tolist()
    most = float(torch.bincount(labels[test], minlength=3).max()) / len(test)
    print(f"{arguments.out}: {dict(zip(CLASSES, counts, strict=True))}; held out {hit:.2f} right,")
    print(f"{most:.2f} by the most frequent class")


if __name__ == "__main__":
    main()
