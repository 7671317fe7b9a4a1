"""Traces of the reasoner's requests are those of Hugging Face, up to the engine's name."""

import copy

import pytest
from conformance_traces import (
    TOLERANCE,
    TRACED,
    Reference,
    logprob_differences,
    trace_differences,
    vector_references,
)
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
    trace, tolerance, *_ = traced[TRACED[kind]]
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
    reference = Reference(trace, TOLERANCE, [-1.5], TOLERANCE)
    other = copy.deepcopy(trace)
    other["engine"] = "vllm"
    other["steps"][0]["entropy"] += TOLERANCE / 2
    assert trace_differences(reference, other) == []
    assert logprob_differences(reference, [-1.5]) == []
    for wrong in (-1.4, float("nan")):
        assert logprob_differences(reference, [wrong])
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
    """Hugging Face's traces and log-probabilities of rows that are fed vectors."""
    return vector_references(checkpoints)


def unlike(job, references):
    """Rows that are fed vectors and are not the reference's, with some places."""
    found = {}
    for run in job["runs"]:
        for row, reference in references.items():
            output = run["outputs"][row]
            # vLLM puts the token itself first.
            logprobs = [next(iter(place.values())) for place in output["logprobs"]]
            places = logprob_differences(reference, logprobs)
            if output["trace"]["steps"]:
                places += trace_differences(reference, output["trace"])
            if places:
                found[row] = places[:5]
    return found


JOBS = [
    *((1, name) for name in ("sync", "async", "preempted", "preempted-async", "dropped")),
    *((1, name) for name in ("compiled", "two-ranks", "gemma")),
    *((2, name) for name in ("sync", "async", "preempted")),
]


@pytest.mark.parametrize(("runner", "name"), [pytest.param(*job, marks=slow) for job in JOBS])
def test_what_is_fed_is_the_reference_s(request, vectors, runner, name):
    """Forced tokens hide errors in what is fed: log-probabilities, and every step's values."""
    job = request.getfixturevalue({1: "first_runner", 2: "second_runner"}[runner])[name]
    assert unlike(job, vectors["gemma" if name == "gemma" else "qwen3"]) == {}
    # Those of preempted engines are run twice, so that slots are used again.
    assert len(job["runs"]) == 1 + name.startswith("preempted")
    if name in ("sync", "preempted") and runner == 1:
        assert all(run["outputs"]["coconut"]["trace"]["steps"] for run in job["runs"])


@pytest.mark.parametrize(
    "runner", [pytest.param("first_runner", marks=slow), pytest.param("second_runner", marks=slow)]
)
def test_without_a_replay_vectors_are_lost(request, vectors, runner):
    job = request.getfixturevalue(runner)["no-replay"]
    assert unlike({**job, "runs": job["runs"][:1]}, vectors["qwen3"])
