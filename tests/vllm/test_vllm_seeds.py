"""Whose noise a request has: its spec's seed, else vLLM's for that request, else a drawn one."""

import pytest
from vllm_support import needs_vllm

pytestmark = [needs_vllm, pytest.mark.slow, pytest.mark.timeout(3000)]


def noise(sample):
    """What tells the noise of two samples apart: their entries in order, which rounding leaves."""
    return repr([[token for token, _ in step["entries"][:6]] for step in sample["trace"]["steps"]])


@pytest.fixture(params=["first_runner", "second_runner"])
def job(request):
    """The job of either runner."""
    found = request.getfixturevalue(request.param)["seeds"]
    assert "error" not in found, found["error"]
    assert not found["runs"][0]["errors"]
    return found


def samples(job, *names):
    """All samples of requests."""
    outputs = job["runs"][0]["outputs"]
    return [one for name in names for one in outputs[name]["samples"]]


def seeds(found):
    """The seeds in their traces."""
    return [one["trace"]["spec"]["seed"] for one in found]


def test_equal_requests_and_samples_without_a_seed_differ(job):
    found = samples(job, *(f"open-{n}" for n in range(4)), "three")
    assert len(found) == len({noise(one) for one in found}) == len(set(seeds(found))) == 7
    assert not any(one["trace"]["same_noise"] for one in found)


def test_the_engines_seed_is_the_noises(job):
    found = samples(job, *(f"engine-{n}" for n in range(3)))
    assert seeds(found) == [0, 1, 2]
    assert len({noise(one) for one in found}) == 3
    (again,), three = samples(job, "engine-again"), samples(job, "engine-three")
    assert noise(again) == noise(found[2]) == noise(three[0])
    assert len({noise(one) for one in three}) == len(set(seeds(three))) == 3


def test_an_explicit_seed_is_kept_and_equal_ones_are_marked(job):
    found = samples(job, "spec-0", "spec-1")
    assert seeds(found) == [5, 5]
    assert noise(found[0]) == noise(found[1])
    assert all(one["trace"]["same_noise"] for one in found)
    three = samples(job, "spec-three")
    assert [one["trace"]["sample"] for one in three] == [0, 1, 2]
    assert seeds(three) == [6, 6, 6]
    assert len({noise(one) for one in three}) == 3
    assert not any(one["trace"]["same_noise"] for one in three)


def test_a_traces_spec_repeats_the_request(job):
    outputs, again = job["runs"][0]["outputs"], job["again"][0]["outputs"]
    assert len(again) >= 15
    for name, one in again.items():
        asked, place = name.split("/")
        before = outputs[asked]["samples"][int(place)]
        assert one["ids"] == before["ids"], name
        # Alone and in a batch differ by rounding.
        for a, b in zip(one["trace"]["steps"], before["trace"]["steps"], strict=True):
            assert dict(a["entries"]) == pytest.approx(dict(b["entries"]), abs=1e-4)
