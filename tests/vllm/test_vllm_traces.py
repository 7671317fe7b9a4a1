"""Traces of the reasoner's requests are those of Hugging Face, up to the engine's name."""

import copy

import pytest
from conformance_traces import TOLERANCE, TRACED, Reference, trace_differences
from vllm_support import needs_vllm

slow = [needs_vllm, pytest.mark.slow, pytest.mark.timeout(3000)]


@pytest.mark.parametrize(
    "runner", [pytest.param("first_runner", marks=slow), pytest.param("second_runner", marks=slow)]
)
def test_every_step_is_the_reference_s(request, traced, runner):
    outputs = request.getfixturevalue(runner)["reasoner"]["runs"][0]["outputs"]
    found = {name: one["trace"] for name, one in outputs.items() if one["trace"] is not None}
    assert set(TRACED.values()) <= set(found) <= set(traced)
    wrong = {name: trace_differences(traced[name], trace)[:5] for name, trace in found.items()}
    assert {name: places for name, places in wrong.items() if places} == {}
    assert {trace["engine"] for trace in found.values()} == {"vllm"}
    if runner == "first_runner":
        assert set(found) == set(traced)


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=slow) for kind in TRACED])
def test_the_traced_rows_do_what_they_are_there_for(traced, reference, kind):
    trace, tolerance = traced[TRACED[kind]]
    counts, steps = trace["counts"], trace["steps"]
    assert tolerance == TOLERANCE
    assert len(steps) == counts["tokens"]
    if kind == "words":
        assert reference["reasoner"]["cyclic-reflex-2"] != reference["reasoner"]["plain-2"]
    else:
        latent = [step["latent"] for step in steps]
        assert sum(latent) == counts["latent_steps"] > 0
        assert False in latent or kind == "latent"
    assert counts["cold_stops"] == (kind == "cold-stopped")
    assert (counts["gate_switches"] > 0) == (kind == "gated")


def test_a_difference_is_seen():
    step = {"token": 3, "phase": "thinking", "entropy": 0.5, "entries": [[3, 0.7], [4, 0.3]]}
    trace = {"engine": "hf", "steps": [step], "counts": {"tokens": 1}}
    reference = Reference(trace, TOLERANCE)
    other = copy.deepcopy(trace)
    other["engine"] = "vllm"
    other["steps"][0]["entropy"] += TOLERANCE / 2
    assert trace_differences(reference, other) == []
    other["steps"][0]["entries"][1][1] += 2 * TOLERANCE
    other["steps"][0]["entropy"] = float("nan")
    other["counts"]["tokens"] = 2
    found = " ".join(trace_differences(reference, other))
    assert "steps[0].entries[4]" in found
    assert "steps[0].entropy" in found
    assert "counts.tokens: 1 and 2" in found
    del other["steps"][0]["phase"]
    other["steps"].append(step)
    found = " ".join(trace_differences(reference, other))
    assert "steps: 1 and 2 items" in found
    assert "steps[0].phase" in found


@pytest.fixture(scope="session")
def vectors(checkpoints):
    """Hugging Face's traces of the random model's rows that are fed more than concept tokens."""
    from conformance_table import MARKERS, SCENARIOS, VECTORS
    from conformance_traces import reference_traces

    rows = [one for one in SCENARIOS if one.name in VECTORS]
    return reference_traces(checkpoints["qwen3"], None, MARKERS, rows)


@pytest.mark.parametrize(
    "runner", [pytest.param("first_runner", marks=slow), pytest.param("second_runner", marks=slow)]
)
@pytest.mark.parametrize("name", ["preempted", "preempted-async"])
def test_vectors_are_the_reference_s_through_preemptions_and_reused_slots(
    request, vectors, runner, name
):
    """Forced tokens hide errors in what is fed: every entropy and weight of every step."""
    if runner == "second_runner" and name == "preempted-async":
        pytest.skip("not a job of the second runner")
    job = request.getfixturevalue(runner)[name]
    assert len(job["runs"]) == 2
    for run in job["runs"]:
        for row, expected in vectors.items():
            found = trace_differences(expected, run["outputs"][row]["trace"])
            assert found == [], (row, found[:5])
