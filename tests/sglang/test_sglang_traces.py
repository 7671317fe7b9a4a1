"""Traces of the reasoner's requests are those of Hugging Face, up to the engine's name."""

import pytest
from conformance_traces import TRACED, trace_differences
from sglang_support import needs_sglang

pytestmark = [needs_sglang, pytest.mark.slow, pytest.mark.timeout(3600)]


def test_every_step_is_the_references(engines, traced):
    assert "error" not in engines["reasoner"], engines["reasoner"]["error"]
    (run,) = engines["reasoner"]["runs"]
    found = {name: one["trace"] for name, one in run.items() if one["trace"] is not None}
    assert set(TRACED.values()) <= set(found)
    assert set(found) == set(traced)
    wrong = {name: trace_differences(traced[name], trace)[:5] for name, trace in found.items()}
    assert {name: places for name, places in wrong.items() if places} == {}
    assert {trace["engine"] for trace in found.values()} == {"sglang"}
