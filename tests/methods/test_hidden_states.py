"""Methods that read or shift hidden states, against the numbers of the specification."""

import json
from collections import Counter
from math import log
from pathlib import Path

import pytest
import torch

from tokenlens.core.engine_vectors import fused
from tokenlens.methods.east.step import steering_vector

CASES = json.loads(
    (Path(__file__).parents[1] / "vectors" / "search_methods.json").read_text(encoding="utf-8")
)


def entropy_of(actions):
    """Nats, of the actions that could be parsed."""
    counts = Counter(action for action in actions if action is not None)
    total = sum(counts.values())
    return -sum(n / total * log(n / total) for n in counts.values())


@pytest.mark.parametrize("case", CASES["east_vector"])
def test_east_s_vector(case):
    entropies = [[entropy_of(actions) for actions in run] for run in case["actions"]]
    for ours, theirs in zip(entropies, case["entropies"], strict=True):
        assert ours == pytest.approx(theirs, abs=1e-6)
    found = steering_vector(
        [torch.tensor(run) for run in case["representations"]],
        [torch.tensor(run) for run in entropies],
    )
    assert found.tolist() == pytest.approx(case["vector"], abs=2e-6)


@pytest.mark.parametrize("case", CASES["latent_fusion"])
def test_the_fusion_of_a_hidden_state_and_the_mixture(case):
    probabilities = torch.tensor(case["logits"], dtype=torch.float64).softmax(0)
    mixture = probabilities @ torch.tensor(case["table"], dtype=torch.float64)
    hidden = torch.tensor([case["hidden"]], dtype=torch.float64)
    found = fused(hidden, mixture[None], torch.tensor([[case["alpha"]]], dtype=torch.float64))
    assert found[0].tolist() == pytest.approx(case["fused"], abs=2e-6)
