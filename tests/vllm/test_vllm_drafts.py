"""Specs beside n-gram drafts in vLLM's second runner; those that feed mixtures have no drafts.

Everything is compared to the bit: ids, log-probabilities of what is sampled from, whole traces.
"""

import pytest
from vllm_scenarios import EDITS, HELD, WITHOUT
from vllm_support import needs_vllm

pytestmark = [needs_vllm, pytest.mark.slow, pytest.mark.timeout(3000)]

DRAFTED = ["drafts", "drafts-async"]


def outputs(job):
    """What the requests of a job gave, by name."""
    return job["runs"][0]["outputs"]


def differing(job, expected, *fields):
    """Names of the requests of which something is not what it is in another engine."""
    found, wanted = outputs(job), outputs(expected)
    return sorted({n for n in found for field in fields if found[n][field] != wanted[n][field]})


@pytest.mark.parametrize("name", DRAFTED)
def test_requests_are_what_they_are_without_drafts(second_runner, name):
    """Greedy and sampled ones: up to where two samples would differ, and none does here.

    What rejection sampling promises is the distribution; the seeds are such that the tokens that
    it draws are the same.
    """
    job, without = second_runner[name], second_runner["no-drafts"]
    assert set(outputs(job)) == set(outputs(without)) == {*EDITS, *HELD, *WITHOUT}
    assert job["async"] == name.endswith("async")
    fields = "ids", "finish_reason", "logprobs", "trace"
    assert differing(job, without, *fields) == []
    for one in outputs(without).values():
        assert len(one["logprobs"]) == len(one["ids"])
    assert job["leaks"] == {"slots": 0, "pages": 0, "live": 0}


@pytest.mark.parametrize("name", DRAFTED)
def test_requests_without_a_spec_are_those_of_an_engine_without_tokenlens(second_runner, name):
    """That drafts as well; and beside them are requests with a spec."""
    stock = second_runner["drafts-stock"]
    assert set(outputs(stock)) == set(WITHOUT)
    assert differing(stock, second_runner[name], "ids", "finish_reason", "logprobs", "trace") == []


@pytest.mark.parametrize("name", DRAFTED)
def test_drafts_were_accepted_and_rejected(second_runner, name):
    accepted, rejected = second_runner[name]["runs"][0]["drafts"]
    assert accepted > 30
    assert rejected > 200
    assert second_runner["no-drafts"]["runs"][0]["drafts"] == [0, 0]


def test_requests_with_a_spec_were_preempted_beside_drafts(second_runner):
    preempted = second_runner["drafts-async"]["runs"][0]["preempted"]
    # vLLM adds to a request's name.
    of_ours = [one for one in preempted if one.rpartition("-")[0] in EDITS]
    assert len(of_ours) >= 5
    assert len(set(of_ours)) >= 3
    # Of those that were thinking in mixtures.
    assert second_runner["drafts-async"]["runs"][0]["preemptions"] >= 1


def test_requests_are_what_their_specs_ask_for(second_runner):
    found = outputs(second_runner["drafts"])
    plain = found["plain"]["ids"]
    assert all(found[name]["ids"] != plain for name in ("none", "soon", "text", "s1", "alpha"))
    assert found["soon"]["trace"]["counts"]["thinking_tokens"] <= 13
    assert found["text"]["trace"]["counts"]["forced_steps"] > 0
    # The trace ends with the stop token, though drafts behind it were accepted.
    assert len(found["stopped"]["trace"]["steps"]) == len(found["stopped"]["ids"])


def test_requests_that_feed_mixtures_have_no_drafts(second_runner):
    found = outputs(second_runner["drafts"])
    assert all(found[name]["trace"]["counts"]["latent_steps"] > 10 for name in HELD)
    # Where they are not held back, the request ends, and no other.
    kept = outputs(second_runner["drafts-kept"])
    assert kept["soft"]["finish_reason"] == "error"
    assert "told to hold back" in kept["soft"]["stop_reason"]
    assert all(one["finish_reason"] != "error" for name, one in kept.items() if name != "soft")


def test_what_cannot_be_beside_drafts_is_refused_alone(second_runner):
    errors = second_runner["drafts"]["runs"][0]["errors"]
    assert set(errors) == {"vectors", "structured"}
    assert "beside drafts" in errors["vectors"]
    assert "structured_outputs" in errors["structured"]


def test_what_is_not_taken_back_is_found(second_runner):
    kept = second_runner["drafts-kept"]
    found = differing(kept, second_runner["no-drafts"], "logprobs")
    assert {"budget", "s1", "soon"} <= set(found)
