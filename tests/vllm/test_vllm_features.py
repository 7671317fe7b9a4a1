"""A spec beside what vLLM offers itself: budgets, masks, stops and log-probabilities."""

import pytest
import quoted
from conformance_models import REASONER_PATH
from vllm_support import needs_vllm

pytestmark = [needs_vllm, pytest.mark.slow, pytest.mark.timeout(3000)]


@pytest.fixture(params=["first_runner", "second_runner"])
def runs(request):
    """What one runner gave."""
    return request.getfixturevalue(request.param)["features"]["runs"]


@pytest.fixture
def outputs(runs):
    """What the requests of one runner gave, by name."""
    assert not runs[0]["errors"]
    return runs[0]["outputs"]


def test_the_engine_s_own_setting_says_the_markers(outputs, first_runner):
    # Its texts on the first runner, its parser's name on the second.
    phase = outputs["soft"]["trace"]["spec"]["phase"]
    assert phase["found"] == "engine"
    assert (phase["think_start"], phase["think_end"]) == ("<think>", "</think>")
    # Without a setting the same model says it itself.
    reasoner = first_runner["reasoner"]["runs"][0]["outputs"]
    found = {one["trace"]["spec"]["phase"]["found"] for one in reasoner.values() if one["trace"]}
    assert found == {"vocabulary"}


def test_what_never_happened_is_said(runs):
    run = runs[1]
    traces = {name: one["trace"] for name, one in run["outputs"].items()}
    never = {name: trace["never_opened"] for name, trace in traces.items() if trace}
    assert never["never-soft"], never
    assert never["never-budget"], never
    assert never["never-preset"], never
    assert not never.get("never-plain"), never
    assert all(trace["counts"]["latent_steps"] == 0 for trace in traces.values() if trace)
    assert run["never_opened"] == 3
    # Once for a model, whatever the number of requests.
    told = [text for text in run["warnings"] if "thinking never opened" in text]
    assert len(told) == 1, run["warnings"]
    assert "'<think>'" in told[0]
    assert "found by: engine" in told[0]
    assert runs[0]["never_opened"] == 0
    assert not any("never opened" in text for text in runs[0]["warnings"])


def test_markers_that_the_model_would_have_to_spell_are_refused(runs):
    message = runs[1]["errors"]["spelled"]
    assert "phase.think_start: got 'Wait:'" in message
    assert "'<think>'" in message
    assert set(runs[1]["errors"]) == {"spelled"}


def test_the_last_turn_of_a_prompt_alone_decides_the_phase(runs):
    from transformers import AutoTokenizer

    found = quoted.prompts(AutoTokenizer.from_pretrained(REASONER_PATH))
    assert not runs[2]["errors"]
    steps = {name: one["trace"]["steps"] for name, one in runs[2]["outputs"].items()}
    phases = {name: steps[name][0]["phase"] for name in found}
    assert phases == {name: phase for name, (_, phase) in found.items()}
    # Then the model opens its thinking by itself.
    for name, one in steps.items():
        assert one[0]["latent"] == (phases[name] == "thinking"), name
        assert one[1]["latent"] == (phases[name] != "answer"), name


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
