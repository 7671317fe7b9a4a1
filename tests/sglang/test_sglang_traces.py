"""Traces of the reasoner's requests are those of Hugging Face, up to the engine's name."""

import pytest
from conformance_traces import TRACED, trace_differences
from sglang_scenarios import REASONERS
from sglang_support import needs_sglang

pytestmark = [needs_sglang, pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.mark.parametrize("suffix", REASONERS)
def test_every_step_is_the_references(engines, traced, suffix):
    job = engines[f"reasoner{suffix}"]
    assert "error" not in job, job["error"]
    (run,) = job["runs"]
    found = {name: one["trace"] for name, one in run.items() if one["trace"] is not None}
    assert set(TRACED.values()) <= set(found)
    assert set(found) == set(traced)
    wrong = {name: trace_differences(traced[name], trace)[:5] for name, trace in found.items()}
    assert {name: places for name, places in wrong.items() if places} == {}
    assert {trace["engine"] for trace in found.values()} == {"sglang"}
