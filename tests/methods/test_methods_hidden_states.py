"""Methods that read or shift hidden states, against the numbers of the specification."""

import json
from collections import Counter
from math import log
from pathlib import Path

import pytest
import torch

from tokenlens.core.engine_vectors import fused
from tokenlens.methods.budget_guidance import predictor
from tokenlens.methods.budget_guidance.step import weighed, weights
from tokenlens.methods.diffadapt.step import CLASSES, probe
from tokenlens.methods.east.step import steering_vector
from tokenlens.methods.softcotpp.step import projected, variant_of

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


@pytest.mark.parametrize("case", CASES["budget_guidance"])
def test_the_weights_of_budget_guidance(case):
    alpha, rate, logits = (
        torch.tensor([case[key]], dtype=torch.float64) for key in ("alpha", "lam", "logits")
    )
    found = weights(alpha, rate, torch.tensor([case["remaining"]]), torch.tensor([True]))
    assert found[0].tolist() == pytest.approx(case["weights"], abs=2e-6)
    probabilities = weighed(logits, found).softmax(1)
    assert probabilities[0].tolist() == pytest.approx(case["probs"], abs=2e-6)


def test_where_nothing_fits_the_most_probable_token_stays():
    alpha, rate = torch.full((1, 4), 300.0), torch.full((1, 4), 20.0)
    found = weights(alpha, rate, torch.tensor([1]), torch.tensor([False]))
    edited = weighed(torch.tensor([[0.1, 2.0, 1.0, -1.0]]), found)
    assert found.sum() == 0
    assert edited.softmax(1).tolist() == [[0.0, 1.0, 0.0, 0.0]]


def test_the_gate_is_the_published_one_alone():
    alpha, rate = torch.tensor([[0.9, 20.0, 20.0]]), torch.tensor([[12.0, 5.0, 12.0]])
    open_, gated = (
        weights(alpha, rate, torch.tensor([500]), torch.tensor([gate])) for gate in (False, True)
    )
    assert (open_ > 0).all()
    assert (gated > 0).tolist() == [[False, False, True]]


@pytest.mark.parametrize("number", [1e30, -1e30, torch.nan, torch.inf])
def test_a_predictor_that_is_not_finite_weighs_nothing(number):
    alpha, rate = torch.tensor([[number, 20.0]]), torch.tensor([[12.0, 4.0]])
    for pair in ((alpha, rate), (rate, alpha)):
        found = weights(*pair, torch.tensor([500]), torch.tensor([False]))
        assert found.isfinite().all()


@pytest.mark.parametrize("case", CASES["diffadapt_probe"])
def test_diffadapt_s_probe(case):
    hidden, *tensors = (
        torch.tensor(case[key], dtype=torch.float64) for key in ("hidden", "W1", "b1", "W2", "b2")
    )
    found = probe(hidden[None], *tensors)[0]
    assert found.tolist() == pytest.approx(case["probs"], abs=2e-6)
    assert CLASSES[int(found.argmax())] == case["strategy"]


def test_the_predictor_is_the_encoder_of_bert():
    """Against transformers' own, whose embeddings are left out."""
    from transformers import BertConfig
    from transformers.models.bert.modeling_bert import BertEncoder

    torch.manual_seed(5)
    width, heads, wide, hidden, vocab = 16, 4, 24, 8, 11
    config = BertConfig(
        hidden_size=width, num_hidden_layers=2, num_attention_heads=heads, intermediate_size=wide,
        attn_implementation="eager",
    )  # fmt: skip
    encoder = BertEncoder(config).eval()
    w = {
        "cls": torch.randn(hidden), "proj.weight": torch.randn(width, hidden),
        "proj.bias": torch.randn(width), "alpha.weight": torch.randn(vocab, width),
        "rate.weight": torch.randn(vocab, width),
    }  # fmt: skip
    theirs = {
        "attention.self.query": "query", "attention.self.key": "key",
        "attention.self.value": "value", "attention.output.dense": "out",
        "attention.output.LayerNorm": "norm1", "intermediate.dense": "up",
        "output.dense": "down", "output.LayerNorm": "norm2",
    }  # fmt: skip
    for name, parameter in encoder.named_parameters():
        block, rest = name.removeprefix("layer.").split(".", 1)
        module, kind = rest.rsplit(".", 1)
        with torch.no_grad():
            parameter.copy_(torch.randn_like(parameter))
        w[f"blocks.{block}.{theirs[module]}.{kind}"] = parameter.detach()
    states = torch.randn(3, 5, hidden)
    x = torch.cat((w["cls"].expand(3, 1, -1), states), dim=1)
    with torch.no_grad():
        y = encoder(x @ w["proj.weight"].T + w["proj.bias"])[0][:, 0]
    alpha, rate = predictor.predict(states, w, heads)
    torch.testing.assert_close(alpha, torch.nn.functional.softplus(y @ w["alpha.weight"].T))
    torch.testing.assert_close(rate, torch.nn.functional.softplus(y @ w["rate.weight"].T))
    # Layers have no places: their order is not seen.
    again = predictor.predict(states.flip(1), w, heads)[0]
    torch.testing.assert_close(again, alpha)


@pytest.mark.parametrize("case", CASES["softcotpp_prefix"])
def test_the_rows_of_softcotpp(case):
    """Of the toy assistant of the specification, one prompt for each learned token."""
    table, mix = torch.tensor(case["assistant_table"]), torch.tensor(case["M"])
    weight = torch.tensor(case["projection_weight"])
    bias, base = torch.tensor(case["projection_bias"]), torch.tensor(case["base_embeds"])
    begin, end, at, until = case["thought_index"]
    for token, wanted in zip(case["initial_tokens"], case["outputs"], strict=True):
        inputs = table[case["assistant_ids"]].clone()
        inputs[at:until] = torch.tensor(token)
        hidden = torch.tanh(inputs.cumsum(0) @ mix)[at:until]
        outputs = base.clone()
        outputs[begin:end] = variant_of(projected(hidden, weight, bias)[None], 0)
        torch.testing.assert_close(outputs, torch.tensor(wanted), rtol=0, atol=2e-5)
