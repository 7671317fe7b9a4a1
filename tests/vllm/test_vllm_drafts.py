"""Specs beside drafts in vLLM's second runner; requests that feed mixtures have none.

Everything is compared to the bit: ids, log-probabilities of what is sampled from, whole traces.
"""

import pytest
from vllm_scenarios import EDITS, HELD, SOME, WITHOUT
from vllm_support import needs_vllm

pytestmark = [needs_vllm, pytest.mark.slow, pytest.mark.timeout(3000)]

DRAFTED = {"drafts": {*EDITS, *HELD, *WITHOUT}, "drafts-async": {*SOME}, "drafts-model": {*SOME}}
FIELDS = "ids", "finish_reason", "logprobs", "trace"


def outputs(job):
    """What the requests of a job gave, by name."""
    return job["runs"][0]["outputs"]


def differing(job, expected, *fields):
    """Names of the requests of both engines of which something is not the same."""
    found, wanted = outputs(job), outputs(expected)
    both = found.keys() & wanted.keys()
    assert both
    return sorted({n for n in both for field in fields if found[n][field] != wanted[n][field]})


@pytest.mark.parametrize("name", DRAFTED)
def test_requests_are_what_they_are_without_drafts(second_runner, name):
    """Sampled ones too, of n-grams: their seeds are such that all draws are the same.

    What rejection sampling promises is the distribution.
    """
    job, without = second_runner[name], second_runner["no-drafts"]
    assert set(outputs(job)) == DRAFTED[name] <= set(outputs(without))
    assert job["async"] == name.endswith("async")
    assert differing(job, without, *FIELDS) == (["sampled"] if name == "drafts-model" else [])
    for one in outputs(job).values():
        assert len(one["logprobs"]) == len(one["ids"])
    assert job["leaks"] == {"slots": 0, "pages": 0, "live": 0}


def test_a_sample_is_of_the_same_distribution_as_without_drafts(second_runner):
    """To the bit, up to and with the first token that is drawn differently."""
    found, wanted = (outputs(second_runner[n])["sampled"] for n in ("drafts-model", "no-drafts"))
    pairs = zip(found["ids"], wanted["ids"], strict=False)
    first = next(place for place, (one, other) in enumerate(pairs) if one != other)
    assert first > 0
    for ours, theirs in zip(found["logprobs"][: first + 1], wanted["logprobs"], strict=False):
        common = ours.keys() & theirs.keys()
        assert len(common) >= 20
        assert all(ours[token] == theirs[token] for token in common)


@pytest.mark.parametrize("name", DRAFTED)
def test_requests_without_a_spec_are_those_of_an_engine_without_tokenlens(second_runner, name):
    """That drafts as well; and beside them are requests with a spec."""
    stock = second_runner["drafts-stock"]
    assert set(outputs(stock)) == set(WITHOUT)
    assert differing(stock, second_runner[name], *FIELDS) == []


@pytest.mark.parametrize(
    ("name", "most"), [("drafts", (30, 200)), ("drafts-async", (5, 100)), ("drafts-model", (50, 5))]
)
def test_drafts_were_accepted_and_rejected(second_runner, name, most):
    accepted, rejected = second_runner[name]["runs"][0]["drafts"]
    assert accepted > most[0]
    assert rejected > most[1]
    assert second_runner["no-drafts"]["runs"][0]["drafts"] == [0, 0]


def test_requests_were_preempted_beside_drafts(second_runner):
    run = second_runner["drafts-async"]["runs"][0]
    # vLLM adds to a request's name.
    names = [one.rpartition("-")[0] for one in run["preempted"]]
    ours = [name for name in names if name in EDITS or name in HELD]
    assert len(ours) >= 4
    assert set(ours) & set(EDITS)
    # Of those that were thinking in mixtures.
    assert run["preemptions"] >= 2


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
