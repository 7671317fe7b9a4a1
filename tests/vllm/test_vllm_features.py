"""A spec beside what vLLM offers itself: budgets, masks, stops and log-probabilities."""

import pytest
from vllm_support import needs_vllm

pytestmark = [needs_vllm, pytest.mark.slow, pytest.mark.timeout(3000)]


@pytest.fixture(params=["first_runner", "second_runner"])
def outputs(request):
    """What the requests of one runner gave, by name."""
    run = request.getfixturevalue(request.param)["features"]["runs"][0]
    assert not run["errors"]
    return run["outputs"]


def test_a_thinking_budget_of_vllm_ends_mixtures(outputs):
    # The same as our own way to end thinking, whether the end is vLLM's or ours to force.
    assert outputs["budget"]["ids"] == outputs["same-as-budget"]["ids"]
    assert outputs["endless"]["ids"] == outputs["budget"]["ids"]
    steps = outputs["budget"]["trace"]["steps"]
    end = next(row for row, step in enumerate(steps) if step["phase"] == "answer")
    assert end == 14  # the marker, twelve of thinking, the marker
    assert [step["latent"] for step in steps[1:end]] == [True] * 12 + [False]
    assert not any(step["latent"] for step in steps[end:])
    # Without a budget this prompt thinks on.
    assert outputs["soft"]["trace"]["counts"]["latent_steps"] > 12


def test_log_probabilities_are_the_model_s(outputs):
    soft, plain = outputs["soft"], outputs["plain"]
    assert len(soft["logprobs"]) == len(soft["ids"])
    # The first token was decided here, and forced; what is reported is the model's opinion of it.
    assert soft["logprobs"][0] == plain["logprobs"][0]
    assert -1 < soft["logprobs"][1][str(soft["ids"][1])] < 0


def test_stops_and_masks_hold_while_thinking(outputs):
    stop = outputs["stopped"]["ids"][-1]
    assert outputs["stopped"]["finish_reason"] == "stop"
    assert outputs["stopped"]["ids"] == outputs["text"]["ids"]
    assert outputs["text"]["finish_reason"] == "stop"
    assert outputs["soft"]["ids"][: len(outputs["text"]["ids"])] == outputs["text"]["ids"]
    assert outputs["text"]["trace"]["counts"]["tokens"] == len(outputs["text"]["ids"])
    masked = outputs["bad-words"]
    assert stop in outputs["soft"]["ids"]
    assert stop not in masked["ids"]
    # Neither is it in a mixture.
    assert all(stop != token for s in masked["trace"]["steps"] for token, w in s["entries"] if w)
