"""Methods that only edit logits beside n-gram drafts, in vLLM's second model runner."""

import pytest
from vllm_scenarios import EDITS
from vllm_support import needs_vllm

pytestmark = [needs_vllm, pytest.mark.slow, pytest.mark.timeout(3000)]

DRAFTED = ["drafts", "drafts-async"]


def outputs(job):
    """What the requests of a job gave, by name."""
    assert not job["runs"][0]["errors"]
    return job["runs"][0]["outputs"]


def told(output):
    """What a trace says of the steps, whoever drew the seed of its spec."""
    trace = output["trace"]
    return trace and {name: trace[name] for name in ("counts", "steps", "final_phase")}


def differing(job, expected, what):
    """Names of the requests that are not what they are without drafts."""
    found, wanted = outputs(job), outputs(expected)
    assert found.keys() == wanted.keys()
    return [name for name in wanted if what(found[name]) != what(wanted[name])]


@pytest.mark.parametrize("name", DRAFTED)
def test_ids_are_those_without_drafts(second_runner, name):
    job, without = second_runner[name], second_runner["no-drafts"]
    assert len(outputs(job)) == 2 * len(EDITS)
    assert job["async"] == name.endswith("async")
    assert differing(job, without, lambda one: one["ids"]) == []
    assert differing(job, without, lambda one: one["finish_reason"]) == []
    assert job["leaks"] == {"slots": 0, "pages": 0, "live": 0}


def test_drafts_were_accepted_and_rejected(second_runner):
    steps = {name: second_runner[name]["runs"][0]["steps"] for name in ("no-drafts", "drafts")}
    assert steps["drafts"] < steps["no-drafts"]
    assert second_runner["drafts-async"]["runs"][0]["preemptions"] >= 0


@pytest.mark.parametrize("name", DRAFTED)
def test_traces_are_those_without_drafts(second_runner, name):
    without = outputs(second_runner["no-drafts"])
    for request, found in outputs(second_runner[name]).items():
        wanted = told(without[request])
        assert (wanted is None) == request.startswith("plain")
        if wanted is None:
            assert found["trace"] is None
            continue
        trace = told(found)
        assert trace["counts"] == wanted["counts"], request
        assert [step["token"] for step in trace["steps"]] == found["ids"]
        for step, other in zip(trace["steps"], wanted["steps"], strict=True):
            same = {key: value for key, value in step.items() if not isinstance(value, float)}
            assert same.items() >= {
                (key, value) for key, value in other.items() if isinstance(value, (int, str, bool))
            }


def test_requests_are_what_their_specs_ask_for(second_runner):
    found = outputs(second_runner["drafts"])
    for question in range(2):
        plain = found[f"plain-{question}"]["ids"]
        others = [found[f"{name}-{question}"]["ids"] for name in ("none", "soon", "text", "s1")]
        assert all(ids != plain for ids in others)
        assert found[f"soon-{question}"]["trace"]["counts"]["thinking_tokens"] <= 13


def test_what_is_not_taken_back_is_found(second_runner):
    kept, without = second_runner["drafts-kept"], second_runner["no-drafts"]
    assert differing(kept, without, told)
