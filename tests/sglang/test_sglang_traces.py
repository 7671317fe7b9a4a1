"""Traces of the reasoner's requests are those of Hugging Face, up to the engine's name."""

import pytest
from conformance_traces import (
    TRACED,
    logprob_differences,
    trace_differences,
    vector_references,
)
from sglang_scenarios import REASONERS
from sglang_support import needs_sglang

pytestmark = [needs_sglang, pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.mark.parametrize("suffix", REASONERS)
def test_every_step_is_the_references(engines, traced, suffix):
    job = engines[f"reasoner{suffix}"]
    assert "error" not in job, job["error"]
    run = job["runs"][0]
    found = {name: one["trace"] for name, one in run.items() if one["trace"] is not None}
    assert set(TRACED.values()) <= set(found)
    assert set(found) == set(traced)
    wrong = {name: trace_differences(traced[name], trace)[:5] for name, trace in found.items()}
    assert {name: places for name, places in wrong.items() if places} == {}
    assert {trace["engine"] for trace in found.values()} == {"sglang"}


@pytest.fixture(scope="module")
def vectors(checkpoints):
    """Hugging Face's traces and log-probabilities of rows that are fed vectors."""
    return vector_references(checkpoints)


def unlike(run, references):
    """Rows that are fed vectors and are not the reference's, with some places."""
    found = {}
    for row, reference in references.items():
        places = logprob_differences(reference, run[row]["logprobs"])
        if run[row]["trace"]["steps"]:
            # The engine of this job has let another method in, which counts.
            different = trace_differences(reference, run[row]["trace"])
            places += [one for one in different if not one.startswith("counts.others.")]
        if places:
            found[row] = places[:5]
    return found


def test_what_is_fed_is_the_references(engines, vectors):
    """Forced tokens hide errors in what is fed: log-probabilities, and every step's values."""
    # The second run uses slots again.
    for run in engines["overlap"]["runs"][:2]:
        assert unlike(run, vectors["qwen3"]) == {}
    assert engines["overlap"]["runs"][0]["coconut"]["trace"]["steps"]
    # Sums over two ranks round some twenty times further than the references' models are changed; a
    # vector that both ranks add is off by 0.07 and more.
    ranks = {
        row: one._replace(logprob_tolerance=20 * one.logprob_tolerance)
        for row, one in vectors["gemma"].items()
    }
    assert unlike(engines["two-ranks"]["runs"][0], ranks) == {}


def test_vectors_are_fed_and_added_again_after_a_retraction(engines, vectors):
    fed, not_fed, shifted, not_shifted = engines["retracted"]["runs"][-4:]
    assert {*fed, *shifted} >= set(vectors["qwen3"])
    for replayed, without in ((fed, not_fed), (shifted, not_shifted)):
        assert sum(one["retractions"] for one in replayed.values()) > 5
        own = {name: vectors["qwen3"][name.split("/")[0]] for name in replayed}
        assert unlike(replayed, own) == {}
        assert unlike(without, own)


def test_the_engine_s_detector_says_the_markers(engines):
    for suffix in ("", "-no-overlap"):
        run = engines[f"reasoner{suffix}"]["runs"][0]
        phases = [one["trace"]["spec"]["phase"] for one in run.values() if one["trace"]]
        assert {(one["think_start"], one["think_end"]) for one in phases} == {
            ("<think>", "</think>")
        }
        # Without a detector the same model says it itself.
        wanted = "engine" if suffix == "-no-overlap" else "vocabulary"
        assert {one["found"] for one in phases} == {wanted}, suffix


def test_what_never_happened_is_said(engines):
    job = engines["reasoner-no-overlap"]
    run, said = job["runs"][1], job["said"][1]
    for name in ("never-soft", "never-preset", "never-budget"):
        assert run[name]["trace"]["never_opened"], name
        assert run[name]["trace"]["counts"]["latent_steps"] == 0
    assert said["never_opened"] == 3
    # Once for a model, whatever the number of requests.
    told = [text for one in job["said"] for text in one["warnings"] if "never opened" in text]
    assert len(told) == 1, job["said"]


def test_markers_that_the_model_would_have_to_spell_are_refused(engines):
    message = engines["reasoner-no-overlap"]["runs"][1]["spelled"]["error"]
    assert "phase.think_start: got 'Wait:'" in message
    assert "'<think>'" in message


def test_markers_for_which_there_is_no_room_are_refused_until_there_is(engines):
    crowded, later = engines["reasoner-no-overlap"]["runs"][2:]
    errors = [one["error"] for one in crowded.values() if "error" in one]
    assert len(errors) == 2, crowded
    for message in errors:
        assert "phase: got 'markers of several tokens, beside 2 other ones" in message
        assert "at most 2 different ones at once" in message
    for one in (*(one for one in crowded.values() if "ids" in one), *later.values()):
        assert one["trace"]["counts"]["latent_steps"] > 0
        assert not one["trace"]["never_opened"]
