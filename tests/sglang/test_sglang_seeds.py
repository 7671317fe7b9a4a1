"""Whose noise a request has: its spec's seed, else SGLang's for that request, else a drawn one."""

import pytest
from sglang_support import needs_sglang

pytestmark = [needs_sglang, pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.fixture
def runs(engines):
    """The run with noise, and every sample asked for once more."""
    assert "error" not in engines["overlap"], engines["overlap"]["error"]
    return engines["overlap"]["runs"][16:18]


def noise(sample):
    """What tells the noise of two samples apart: their entries in order, which rounding leaves."""
    return repr([[token for token, _ in step["entries"][:6]] for step in sample["trace"]["steps"]])


def samples(runs, *names):
    """All samples of requests."""
    return [one for name in names for one in runs[0][name]["samples"]]


def seeds(found):
    """The seeds in their traces."""
    return [one["trace"]["spec"]["seed"] for one in found]


def test_equal_requests_and_samples_without_a_seed_differ(runs):
    found = samples(runs, *(f"open-{n}" for n in range(4)), "three", "batch")
    assert len(found) == len({noise(one) for one in found}) == len(set(seeds(found))) == 10
    assert not any(one["trace"]["same_noise"] for one in found)


def test_the_engines_seed_is_the_noises(runs):
    found = samples(runs, *(f"engine-{n}" for n in range(3)))
    assert seeds(found) == [0, 1, 2]
    assert len({noise(one) for one in found}) == 3
    (again,), three = samples(runs, "engine-again"), samples(runs, "engine-three")
    assert noise(again) == noise(found[2]) == noise(three[0])
    assert len({noise(one) for one in three}) == len(set(seeds(three))) == 3


def test_an_explicit_seed_is_kept_and_equal_ones_are_marked(runs):
    found = samples(runs, "spec-0", "spec-1")
    assert seeds(found) == [5, 5]
    assert noise(found[0]) == noise(found[1])
    assert any(one["trace"]["same_noise"] for one in found)
    three = samples(runs, "spec-three")
    assert [one["trace"]["sample"] for one in three] == [0, 1, 2]
    assert seeds(three) == [6, 6, 6]
    assert len({noise(one) for one in three}) == 3


def test_a_traces_spec_repeats_the_request(runs):
    asked, again = runs
    assert len(again) >= 15
    for name, one in again.items():
        if name.split("/")[0] not in asked:
            continue
        before = asked[name.split("/")[0]]["samples"][int(name.split("/")[1])]
        assert one["ids"] == before["ids"], name
        # Alone and in a batch differ by rounding.
        for a, b in zip(one["trace"]["steps"], before["trace"]["steps"], strict=True):
            assert dict(a["entries"]) == pytest.approx(dict(b["entries"]), abs=1e-4)
