"""The table of scenarios through vLLM's two model runners, and what could make it go wrong."""

import pytest
from conformance_table import SHIFTED, hosted
from vllm_support import needs_vllm

pytestmark = [needs_vllm, pytest.mark.slow, pytest.mark.timeout(3000)]

SCENARIOS = hosted("vllm")
GREEDY = [scenario.name for scenario in SCENARIOS if scenario.greedy]
LATENT = [
    scenario.name
    for scenario in SCENARIOS
    if scenario.greedy
    and scenario.methods is not None
    and scenario.methods[0]["method"] == "soft_thinking"
    and len(scenario.methods) == 1
]


def differing(job, expected, most=None):
    """Names of the scenarios whose ids are not the reference's, in so many runs of the table."""
    return [
        name
        for run in job["runs"][:most]
        for name in GREEDY
        if run["outputs"][name]["ids"] != expected[name]
    ]


def assert_clean(job):
    """No slot and no page is left taken, and every request was served."""
    assert job["leaks"] == {"slots": 0, "pages": 0, "live": 0}
    for run in job["runs"]:
        assert not run["errors"]
        assert len(run["outputs"]) == len(SCENARIOS) >= 12


@pytest.mark.parametrize("name", ["sync", "async", "preempted", "preempted-async"])
def test_first_runner_gives_the_reference_ids(first_runner, reference, name):
    job = first_runner[name]
    assert job["runner"] == "vllm.v1.worker.cpu_model_runner"
    assert job["async"] == name.endswith("async")
    assert differing(job, reference["qwen3"]) == []
    assert_clean(job)


def test_the_tiny_reasoner(first_runner, reference):
    expected = reference["reasoner"]
    outputs = first_runner["reasoner"]["runs"][0]["outputs"]
    assert len(outputs) == len(expected) >= 12
    assert {name: outputs[name]["ids"] for name in expected} == expected
    for name in ("soft-0", "cold-1", "soft-2"):
        assert outputs[name]["trace"]["counts"]["latent_steps"] > 0
    assert outputs["soft-2"]["trace"]["counts"]["thinking_tokens"] > 0


@pytest.mark.parametrize(("name", "model"), [("llama", "llama-tied"), ("gemma", "gemma")])
def test_tied_and_scaled_embeddings(first_runner, reference, name, model):
    assert differing(first_runner[name], reference[model]) == []
    assert_clean(first_runner[name])


def test_inside_a_compiled_forward(first_runner, reference):
    assert differing(first_runner["compiled"], reference["qwen3"]) == []
    assert_clean(first_runner["compiled"])


def test_two_tensor_parallel_ranks(first_runner, reference):
    job = first_runner["two-ranks"]
    assert job["runner"] == "vllm.v1.executor.multiproc_executor"
    assert differing(job, reference["qwen3"]) == []
    assert len(job["runs"][0]["outputs"]) == len(SCENARIOS)


@pytest.mark.parametrize("name", ["sync", "async", "preempted"])
def test_second_runner_gives_the_reference_ids(second_runner, reference, name):
    job = second_runner[name]
    assert job["runner"] == "vllm.v1.worker.cpu.model_runner"
    assert job["async"] == (name == "async")
    assert differing(job, reference["qwen3"]) == []
    assert_clean(job)


def test_there_is_something_to_get_wrong(reference):
    # If mixtures changed nothing, every test here would pass without them.
    ids = reference["qwen3"]
    assert ids["soft"] != ids["plain"]
    assert len({tuple(found) for found in ids.values()}) == len(ids)


@pytest.mark.parametrize("runner", ["first_runner", "second_runner"])
def test_preemptions_happen_and_replay_is_what_survives_them(request, reference, runner):
    jobs = request.getfixturevalue(runner)
    assert sum(run["preemptions"] for run in jobs["preempted"]["runs"]) >= 20
    wrong = differing(jobs["no-replay"], reference["qwen3"], 1)
    assert jobs["no-replay"]["runs"][0]["preemptions"] >= 1
    assert wrong, "with the replay switched off, recomputed mixtures turn into tokens"
    lost, taken = set(), set()
    for run in jobs["no-replay"]["runs"][1:]:
        taken |= {name.rpartition("-")[0] for name in run["preempted"]}
        ids = {name: run["outputs"][name]["ids"] for name in SHIFTED}
        lost |= {name for name in SHIFTED if ids[name] != reference["qwen3"][name]}
    assert lost, "and shifted positions into positions as they are"
    assert lost <= taken
    # Requests that feed no mixtures need no replay.
    assert not {"plain", "plain-long", "no-thinking", "answer-now"}.intersection(wrong)


def test_tokens_in_flight_are_taken_back(first_runner, reference):
    job = first_runner["dropped"]
    assert job["runs"][0]["preemptions"] >= 20
    assert differing(job, reference["qwen3"]) == []
    assert_clean(job)


def test_history_is_bounded_and_what_does_not_fit_fails_loudly(first_runner, reference):
    job = first_runner["small-history"]
    run = job["runs"][0]
    assert run["num_pages"] == 3
    assert run["most_pages"] <= 3
    outputs = run["outputs"]
    failed = {name for name in outputs if outputs[name]["finish_reason"] == "error"}
    assert failed
    # Whoever ended well has the right ids, and nobody else was harmed.
    assert set(differing(job, reference["qwen3"])) <= failed
    assert {"plain", "plain-long", "no-thinking"}.isdisjoint(failed)
    assert job["leaks"] == {"slots": 0, "pages": 0, "live": 0}


@pytest.mark.parametrize("runner", ["first_runner", "second_runner"])
def test_cached_blocks_of_mixtures_are_not_shared(request, runner):
    latent, plain, again, fresh, alone, last = (
        run["outputs"] for run in request.getfixturevalue(runner)["shared"]["runs"]
    )
    assert len(latent["latent"]["ids"]) == 60
    # 71 tokens of prompt: two blocks of 32 are shared, also between latent requests.
    assert plain["plain"]["cached"] == 64
    assert again["again"]["cached"] == 64
    assert again["again"]["ids"] == latent["latent"]["ids"]
    assert fresh["fresh"]["cached"] == 0
    assert distance(plain["plain"], fresh["fresh"]) < 1e-4
    # The same of hidden states that were fed beneath one visible token.
    assert plain["after-hidden"]["cached"] == 64
    assert distance(plain["after-hidden"], alone["fresh-after-hidden"]) < 1e-4
    # And of positions that were shifted behind a layer.
    assert plain["after-shifted"]["cached"] == 64
    assert distance(plain["after-shifted"], last["fresh-after-shifted"]) < 1e-4


def test_without_the_salt_the_cache_is_polluted(first_runner):
    _, plain, _, fresh, alone, last = (run["outputs"] for run in first_runner["no-salt"]["runs"])
    assert plain["plain"]["cached"] == 128
    assert distance(plain["plain"], fresh["fresh"]) > 1e-2
    assert plain["after-hidden"]["cached"] == 128
    assert distance(plain["after-hidden"], alone["fresh-after-hidden"]) > 1e-2
    assert plain["after-shifted"]["cached"] == 128
    assert distance(plain["after-shifted"], last["fresh-after-shifted"]) > 1e-2


def distance(one, other):
    """The largest difference of two first tokens' log-probabilities, over tokens in both."""
    first, second = one["logprobs"][0], other["logprobs"][0]
    common = set(first) & set(second)
    return max(abs(first[token] - second[token]) for token in common) if common else float("inf")


def test_requests_without_a_spec_are_bit_identical(first_runner):
    stock, loaded = (first_runner[name]["runs"][0]["outputs"] for name in ("stock", "loaded"))
    assert len(stock) == 4
    assert {n: (o["ids"], o["logprobs"]) for n, o in stock.items()} == {
        n: (o["ids"], o["logprobs"]) for n, o in loaded.items()
    }


def test_traces_come_back(first_runner):
    outputs = first_runner["sync"]["runs"][0]["outputs"]
    assert outputs["plain"]["trace"] is None
    for name in LATENT:
        trace = outputs[name]["trace"]
        assert trace["engine"] == "vllm"
        assert [step["token"] for step in trace["steps"]] == outputs[name]["ids"]
        assert trace["counts"]["tokens"] == len(outputs[name]["ids"])
        latent = [step for step in trace["steps"] if step["latent"]]
        assert len(latent) == trace["counts"]["latent_steps"]
        assert all(abs(sum(w for _, w in step["entries"]) - 1) < 0.2 for step in latent)
    assert outputs["soft"]["trace"]["counts"]["latent_steps"] == len(outputs["soft"]["ids"])
    assert outputs["cold-stop"]["trace"]["counts"]["cold_stops"] == 1
    # By default totals only.
    assert first_runner["async"]["runs"][0]["outputs"]["soft"]["trace"]["steps"] == []
