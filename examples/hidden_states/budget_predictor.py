"""Train Budget Guidance's predictor (arXiv 2506.13752) for a tiny reasoner, from its own rollouts.

At each position of the thinking the label is how many thinking tokens are left; the loss is the
negative log-likelihood of ``ln(left + 1)`` under the Gamma of the token that comes next.

    python examples/hidden_states/budget_predictor.py tiny-reasoner-small predictor.safetensors

``--control shuffled`` learns from labels that were dealt out anew, for comparison.
"""

import argparse
from pathlib import Path

import torch
from rollouts import load, questions, roll, states_of
from safetensors.torch import save_file
from torch import Tensor

from tokenlens.methods.budget_guidance.predictor import predict

WIDTH, WIDE, HEADS, BLOCKS = 32, 64, 2, 2


def fresh(hidden: int, vocab: int, target: Tensor) -> dict[str, Tensor]:
    """Parameters before training: the Gamma of all labels, whatever is read."""

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape) * shape[-1] ** -0.5

    w = {"cls": torch.randn(hidden), "proj.weight": random(WIDTH, hidden)}
    w["proj.bias"] = torch.zeros(WIDTH)
    shapes = dict.fromkeys(("query", "key", "value", "out"), (WIDTH, WIDTH))
    for block in range(BLOCKS):
        for name, shape in {**shapes, "up": (WIDE, WIDTH), "down": (WIDTH, WIDE)}.items():
            w[f"blocks.{block}.{name}.weight"] = random(*shape)
            w[f"blocks.{block}.{name}.bias"] = torch.zeros(shape[0])
        for name in ("norm1", "norm2"):
            w[f"blocks.{block}.{name}.weight"] = torch.ones(WIDTH)
            w[f"blocks.{block}.{name}.bias"] = torch.zeros(WIDTH)
    mean, variance = target.mean(), target.var()
    # What leaves the encoder has this mean, so that equal weights give the same for all.
    w[f"blocks.{BLOCKS - 1}.norm2.bias"] += 1
    for head, value in (("alpha", mean**2 / variance), ("rate", mean / variance)):
        level = value.expm1().log() / WIDTH
        w[f"{head}.weight"] = level + random(vocab, WIDTH) * 0.01
    return {name: tensor.requires_grad_() for name, tensor in w.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("model")
    parser.add_argument("out", type=Path)
    parser.add_argument("--rollouts", type=int, default=256)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--control", choices=["shuffled"])
    arguments = parser.parse_args()
    torch.manual_seed(0)
    model, tokenizer = load(arguments.model)
    states, nexts, left = [], [], []
    for one in roll(model, tokenizer, questions(arguments.rollouts), 0.6):
        if one.end is not None:
            places = torch.arange(one.begin - 1, one.end)
            states.append(states_of(model, one.ids)[places])
            nexts.append(one.ids[places + 1])
            left.append(one.end - places)
    x, token, label = torch.cat(states), torch.cat(nexts), torch.cat(left).float()
    if arguments.control == "shuffled":
        label = label[torch.randperm(len(label))]
    target = (label + 1).log()
    # Every eighth rollout's worth of positions is held out.
    held = torch.arange(len(x)) >= len(x) * 7 // 8
    train, test = (~held).nonzero()[:, 0], held.nonzero()[:, 0]
    w = fresh(model.config.hidden_size, model.config.vocab_size, target[train])
    optimizer = torch.optim.AdamW(w.values(), lr=2e-3, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, arguments.steps)

    def loss(at: Tensor) -> Tensor:
        alpha, rate = predict(x[at], w, HEADS)
        pair = (found.gather(1, token[at, None])[:, 0].clamp(min=1e-3) for found in (alpha, rate))
        return -torch.distributions.Gamma(*pair).log_prob(target[at]).mean()

    for _ in range(arguments.steps):
        optimizer.zero_grad()
        loss(train[torch.randint(len(train), (256,))]).backward()
        torch.nn.utils.clip_grad_norm_(w.values(), 1.0)
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        found = float(loss(test))
    # The same number for everything is what it has to be better than.
    alone = torch.distributions.Normal(target[train].mean(), target[train].std())
    base = float(-alone.log_prob(target[test]).mean())
    save_file(
        {name: tensor.detach() for name, tensor in w.items()},
        arguments.out,
        {"heads": str(HEADS), "model": arguments.model},
    )
    print(f"{arguments.out}: {len(x)} positions; held out, nats a position: {found:.3f}, and")
    print(f"{base:.3f} of one distribution for all")


if __name__ == "__main__":
    main()
