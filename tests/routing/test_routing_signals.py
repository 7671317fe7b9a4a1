"""Signals against the reference's own numbers."""

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import GenerationConfig

from tokenlens.routing import FirstTokenSignals, Sampling, parse_routing
from tokenlens.routing.hf_sampling import resolved, sample
from tokenlens.routing.hf_sampling import signals as of_logits
from tokenlens.routing.policies import sentiment, signal_of
from tokenlens.routing.signals import RunningQuantile, score_of

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "logit_methods.json").read_text())
LOGITS = {
    "geo_r.7_30": torch.arange(30.0) * math.log(0.7),
    "geo_r.9_300": torch.arange(300.0) * math.log(0.9),
    "lin5": torch.tensor([2.0, 1.0, 0.0, -1.0, -2.0]),
}


def signals_of(logits):
    # the reference's inputs are float32, its arithmetic is float64
    row = logits[None].double()
    entropy, ids, values = of_logits(row)
    return FirstTokenSignals(tuple((str(i), v) for i, v in zip(ids[0], values[0])), entropy[0])


@pytest.mark.parametrize(
    ("name", "topk", "full"), VECTORS["glimprouter H_init top20-renormalised nats"]
)
def test_entropy_of_the_first_token(name, topk, full):
    found = signals_of(LOGITS[name])
    assert found.topk_entropy() == pytest.approx(topk, abs=1e-12)
    assert found.topk_entropy(published=True) == pytest.approx(topk, abs=1e-12)
    assert found.entropy == pytest.approx(full, abs=1e-12)


def test_a_zero_probability_is_nan_only_as_published():
    found = FirstTokenSignals((("a", -0.1), ("b", -9999.0)))
    assert math.isnan(found.topk_entropy(published=True))
    assert found.topk_entropy() == 0.0


def test_equal_texts_collapse_only_as_published():
    found = FirstTokenSignals((("a", math.log(0.5)), ("a", math.log(0.25)), ("b", math.log(0.25))))
    assert found.topk_entropy() == pytest.approx(1.5 * math.log(2))
    assert found.topk_entropy(published=True) == pytest.approx(math.log(2))


def test_the_signal_asked_for_is_the_one_given():
    def signal(facts, **fields):
        policy = parse_routing({"policy": {"policy": "glimprouter", **fields}}).policy
        return signal_of(policy, facts)

    both = FirstTokenSignals((("a", math.log(0.75)), ("b", math.log(0.25))), 0.9)
    assert signal(both) == ("raw_entropy", 0.9)
    name, value = signal(both, entropy_of="topk")
    assert (name, value) == ("topk_entropy", pytest.approx(0.562335, abs=1e-6))
    assert signal(FirstTokenSignals(both.top))[0] == "topk_entropy"
    assert signal(both, signal="max_probability")[1] == pytest.approx(0.25)
    # p^(1/0.6), renormalised: 0.8619, 0.1381
    assert signal(both, signal="concept_entropy")[1] == pytest.approx(0.40150, abs=1e-4)
    assert math.isnan(signal(None)[1])


def test_scores():
    top = {"7": 0.5, "8": 0.3, "6": 0.1, " 9": 0.1}
    assert score_of(top, reading="average", strip=False) == pytest.approx(7.2222, abs=1e-4)
    assert score_of(top, reading="average", strip=True) == pytest.approx(7.4)
    assert score_of({"10": 0.5, "9": 0.5}, reading="average", strip=True) == pytest.approx(9.5)
    assert score_of({"the": 0.9, "3": 0.1}, reading="greedy", strip=True) == 0
    assert score_of({"the": 1.0}, reading="average", strip=True) == 0


@pytest.mark.parametrize(
    ("text", "sign"),
    [("Wait, let me check", -1), ("yeah but wait", -1), ("another way: yes, yes", 1), ("so 7", 0)],
)
def test_sentiment(text, sign):
    policy = parse_routing("speculative_thinking").policy
    assert sentiment(text, policy) == sign


@pytest.mark.parametrize("share", [0.1, 0.3, 0.8])
def test_a_running_quantile_gives_its_share(share):
    generator = torch.Generator().manual_seed(3)
    quantile = RunningQuantile(share, 200)
    values = torch.rand(4000, generator=generator) ** 3
    above = [quantile.is_above(value) for value in values.tolist()]
    assert sum(above[200:]) / 3800 == pytest.approx(share, abs=0.02)
    equal = RunningQuantile(share, 50)
    assert sum(equal.is_above(1.0) for _ in range(500)) in (0, 500)


def test_what_a_request_leaves_open_is_in_the_generation_config():
    left = Sampling(temperature=None, top_p=None, top_k=None, seed=4)
    config = GenerationConfig(temperature=0.3, top_k=7, do_sample=True)
    assert resolved(left, config) == Sampling(temperature=0.3, top_p=1.0, top_k=7, seed=4)
    asked = Sampling(temperature=0.9, top_p=None, top_k=0, seed=4)
    assert resolved(asked, config) == Sampling(temperature=0.9, top_p=1.0, top_k=0, seed=4)
    for empty in (GenerationConfig(), None):
        assert resolved(left, empty) == Sampling(temperature=1.0, seed=4)
    assert resolved(Sampling(), config) == Sampling()


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-45, 1e-20, 1e-6, 100.0])
def test_no_temperature_draws_what_is_impossible(temperature):
    """Below what float32 can divide by, the largest is drawn, and no entry becomes NaN."""
    logits = torch.tensor([[-math.inf, 0.0, 3.0, -2.0, -math.inf], [0.0] * 5])
    logits[1, 3] = 60.0
    how = [Sampling(temperature=temperature, top_p=0.9, seed=seed) for seed in (1, 2)]
    drawn = sample(logits, how, [5, 6]).tolist()
    assert drawn[0] in (1, 2, 3)
    assert temperature > 1 or drawn == [2, 3]
