"""Real engines on a CPU against Hugging Face: ids, retractions, the radix cache, features."""

import faulty_method as faulty
import pytest
from conformance_models import WRONG_FILES
from conformance_table import OUTSIDE
from sglang_scenarios import REASONERS
from sglang_support import needs_sglang

pytestmark = [needs_sglang, pytest.mark.slow, pytest.mark.timeout(3600)]


def runs_of(engines, name):
    """The runs of a job that went through."""
    assert "error" not in engines[name], engines[name]["error"]
    return engines[name]["runs"]


def differing(run, expected):
    """Names of the requests whose ids are not the reference's; the part before a slash counts."""
    found = [name for name in run if name.split("/")[0] in expected]
    assert len(found) >= 12
    return [name for name in found if run[name].get("ids") != expected[name.split("/")[0]]]


def test_there_is_something_to_get_wrong(reference):
    # If mixtures changed nothing, every test here would pass without them.
    ids = reference["qwen3"]
    assert ids["soft"] != ids["plain"]
    assert len({tuple(found) for found in ids.values()}) >= len(ids) - 1


def test_overlap_gives_the_reference_ids(engines, reference):
    job = engines["overlap"]
    first, second, *_ = runs_of(engines, "overlap")
    assert job["info"]["overlap"]
    assert differing(first, reference["qwen3"]) == []
    assert differing(second, reference["qwen3"]) == []


def test_without_overlap_and_with_tied_embeddings(engines, reference):
    run = runs_of(engines, "no-overlap")[0]
    assert not engines["no-overlap"]["info"]["overlap"]
    assert differing(run, reference["llama-tied"]) == []


def test_sglangs_own_thinking_budget_ends_latent_thinking(engines):
    one = runs_of(engines, "no-overlap")[1]["budget"]
    # Four tokens, then SGLang's new line and end of thinking; the answer is discrete.
    assert one["ids"][4:6] == [9, 7]
    counts = one["trace"]["counts"]
    assert (counts["thinking_tokens"], counts["latent_steps"]) == (6, 5)
    assert one["trace"]["final_phase"] == "answer"


def test_two_ranks_and_scaled_embeddings(engines, reference):
    (run,) = runs_of(engines, "two-ranks")
    assert differing(run, reference["gemma"]) == []


@pytest.mark.parametrize("suffix", REASONERS)
def test_the_tiny_reasoner_and_methods_that_need_words(engines, reference, suffix):
    run = runs_of(engines, f"reasoner{suffix}")[0]
    assert engines[f"reasoner{suffix}"]["info"]["overlap"] == (suffix != "-no-overlap")
    assert differing(run, reference["reasoner"]) == []
    for name in ("soft-0", "cold-1", "soft-2"):
        assert run[name]["trace"]["counts"]["latent_steps"] > 0
    retractions = sum(one["retractions"] for one in run.values())
    assert retractions > 10 if suffix == "-retracted" else retractions == 0


def test_forced_retractions_change_nothing(engines, reference):
    run = runs_of(engines, "retracted")[0]
    assert len(run) == 24
    assert differing(run, reference["qwen3"]) == []


def test_the_replay_is_what_survives_retractions(engines, reference):
    wrong = differing(runs_of(engines, "retracted")[1], reference["qwen3"])
    assert wrong, "with the replay switched off, recomputed mixtures turn into tokens"
    # Requests that feed no mixtures need no replay.
    needless = {"plain", "plain-long", "no-thinking", "answer-now"}
    assert not needless.intersection(name.split("/")[0] for name in wrong)


def moved(one, first):
    """How far the entropies of a request's steps are from another's of the same ids, in nats."""
    pairs = zip(one["trace"]["steps"], first["trace"]["steps"], strict=True)
    return max(abs(mine["entropy"] - other["entropy"]) for mine, other in pairs)


def test_a_retracted_request_reads_no_kv_of_its_visible_tokens(engines):
    first, writer, limited, unlimited = runs_of(engines, "retracted")[2:6]
    said = first["first"]
    assert "ids" in writer["writer"]
    assert len(said["ids"]) == len(said["trace"]["steps"]) == 60
    for run in (limited, unlimited):
        assert sum(one["retractions"] for one in run.values()) > 3
    for one in limited.values():
        assert one["ids"] == said["ids"]
        assert moved(one, said) < 0.1
    wrong = [o for o in unlimited.values() if o["ids"] != said["ids"] or moved(o, said) > 0.5]
    assert wrong, "the guard is not needed, or was not switched off"


def distance(one, other):
    """The largest difference of two first tokens' log-probabilities, over tokens in both."""
    first, second = one["tops"][0], other["tops"][0]
    common = set(first) & set(second)
    return max(abs(first[token] - second[token]) for token in common) if common else float("inf")


def test_prompts_are_cached_and_mixtures_never(engines):
    runs = runs_of(engines, "overlap")[2:11]
    latent, plain, again, fresh, _, polluted, short, after, after_fresh = runs
    prompt = len(latent["latent"]["prompt"])
    assert len(latent["latent"]["ids"]) == 40
    # The prompt is shared, with plain requests and with latent ones; nothing behind it is.
    assert plain["plain"]["cached"] == prompt
    assert again["again"]["cached"] == prompt - 1
    assert again["again"]["ids"] == latent["latent"]["ids"]
    assert fresh["fresh"]["cached"] == 0
    assert distance(plain["plain"], fresh["fresh"]) < 1e-4
    # The same of hidden states that were fed beneath one visible token.
    assert plain["after-hidden"]["cached"] == len(latent["hidden"]["prompt"])
    assert distance(plain["after-hidden"], fresh["fresh-after-hidden"]) < 1e-4
    # And of positions that were shifted behind a layer.
    assert plain["after-shifted"]["cached"] == len(latent["shifted"]["prompt"])
    assert distance(plain["after-shifted"], fresh["fresh-after-shifted"]) < 1e-4
    assert polluted["polluted-shifted"]["cached"] > prompt
    assert distance(polluted["polluted-shifted"], fresh["fresh-after-shifted"]) > 1e-2
    # Without the guard a plain request reads mixtures.
    assert polluted["polluted"]["cached"] > prompt
    assert distance(polluted["polluted"], fresh["fresh"]) > 1e-2
    # A request that ends with its first latent step.
    assert len(short["short"]["ids"]) == 1
    assert after["after-short"]["cached"] <= len(short["short"]["prompt"])
    assert distance(after["after-short"], after_fresh["after-fresh"]) < 1e-4


@pytest.fixture(scope="module")
def features(engines):
    """The run with everything that is not ids."""
    return runs_of(engines, "overlap")[11]


def test_streams_say_the_same(features):
    whole, stream = features["whole"], features["stream"]
    assert stream["ids"] == whole["ids"]
    assert len(stream["chunks"]) > 3
    assert stream["trace"]["counts"] == whole["trace"]["counts"]


def test_an_abort_leaves_the_others_alone(features):
    assert features["left"]["aborted_at"] >= 5
    assert "error" not in features["whole"]


def test_log_probabilities_are_those_of_the_emitted_tokens(features):
    one = features["logprobs"]
    assert one["ids"] == features["whole"]["ids"]
    assert len(one["logprobs"]) == len(one["ids"])
    # At a latent step the visible token is the mixture's first entry, the most probable token: not
    # certain, and never one that the sampler drew beside it.
    steps = one["trace"]["steps"]
    for token, logprob, tops, step in zip(one["ids"], one["logprobs"], one["tops"], steps):
        assert step["latent"]
        assert max(tops, key=tops.get) == str(token)
        assert tops[str(token)] == pytest.approx(logprob, abs=1e-5)
        assert logprob < -1e-3
    # The first token is decided on the same logits as a plain request's.
    assert one["logprobs"][0] == pytest.approx(features["plain-logprobs"]["logprobs"][0], abs=1e-5)


def test_samples_of_one_prompt_have_their_own_noise(features):
    samples = features["samples"]["samples"]
    assert len({tuple(one["ids"]) for one in samples}) == len(samples) == 3
    assert samples[0]["ids"] == features["sample"]["ids"]


def test_traces_come_back(engines):
    first, second = runs_of(engines, "overlap")[:2]
    assert first["plain"]["trace"] is None
    for name in ("soft", "soft-narrow", "cold-stop", "gumbel", "soft-long-prompt"):
        trace = first[name]["trace"]
        assert trace["engine"] == "sglang"
        assert [step["token"] for step in trace["steps"]] == first[name]["ids"]
        assert trace["counts"]["tokens"] == len(first[name]["ids"])
        latent = [step for step in trace["steps"] if step["latent"]]
        assert len(latent) == trace["counts"]["latent_steps"] > 0
        assert all(abs(sum(w for _, w in step["entries"]) - 1) < 0.2 for step in latent)
    assert first["cold-stop"]["trace"]["counts"]["cold_stops"] == 1
    # By default totals only.
    assert second["soft"]["trace"]["steps"] == []


def test_requests_without_a_spec_are_bit_identical(engines):
    stock, loaded = runs_of(engines, "stock")[:3], runs_of(engines, "overlap")[12:15]
    assert len(loaded[0]["plain-0"]["logprobs"]) == 16
    for one, other in zip(stock, loaded):
        for name in one:
            assert one[name]["ids"] == other[name]["ids"]
            assert one[name]["logprobs"] == other[name]["logprobs"]
            assert one[name]["tops"] == other[name]["tops"]


@pytest.mark.parametrize("name", ["overlap", "no-overlap", "two-ranks", "retracted", "reasoner"])
def test_rows_without_a_spec_are_untouched_beside_those_with_one(engines, name):
    # A difference would have ended the scheduler; this shows that there was something to compare.
    runs_of(engines, name)
    untouched = engines[name]["info"]["untouched"]
    assert untouched["rows"] > 20
    assert untouched["tokens"] > 20


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("value", ["methods[0].top_k", "-1", "at least 0"]),
        ("field", ["methods[0].topk", "top_k"]),
        ("preset", ["preset", "'qwen3-sofd'"]),
        ("kind", ["tokenlens", "7"]),
        ("marker", ["phase.think_end", "4096", "96"]),
        ("no-tokenizer", ["phase.think_start", "no tokenizer"]),
        ("ours", ["_tokenlens_sample"]),
        ("our-seed", ["_tokenlens_seed"]),
        ("beam", ["beam_width", "2"]),
        ("grammar", ["regex"]),
        ("session", ["session_params"]),
        ("vectors", ["soft_tokens.mixture", "at most 200 vectors of 256 bytes", "be fed 201"]),
    ],
)
def test_a_bad_spec_is_refused_with_its_field(engines, name, words):
    run = runs_of(engines, "overlap")[15]
    assert run[name]["error"].startswith("ValueError")
    assert all(word in run[name]["error"] for word in words), run[name]["error"]
    assert len(run["right"]["ids"]) == 8


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("pipeline", ["pp_size"]),
        ("speculative", ["speculative_algorithm", "NGRAM"]),
        ("mixed", ["enable_mixed_chunk"]),
        ("disaggregated", ["disaggregation_mode"]),
        ("sessions", ["sessions"]),
        ("data-parallel", ["dp_size"]),
        ("attention", ["data-parallel attention"]),
    ],
)
def test_an_engine_that_cannot_host_specs_does_not_start(engines, name, words):
    message = engines[f"refused-{name}"]["error"]
    assert message.startswith("UnsupportedError")
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("method", ["method 'no_ech'", "got no entry point", "no_echo, pulse_gate"]),
        ("broken", ["method 'unmade'", "OSError", "no such file"]),
    ],
)
def test_a_method_that_is_missing_or_broken_ends_the_start(engines, name, words):
    message = engines[f"refused-{name}"]["error"]
    assert message.startswith("MethodError")
    assert all(word in message for word in words), message


@pytest.mark.parametrize(("name", "words"), WRONG_FILES)
def test_a_file_that_cannot_be_ends_the_start(engines, name, words):
    message = engines[name]["error"]
    assert message.startswith("SpecError")
    assert all(word in message for word in words), message


def test_whatever_goes_wrong_in_a_method_from_outside_harms_no_other_request(engines):
    alone, together = runs_of(engines, "overlap")[-4:-2]
    for name in ("soft", "pulse", "ends", "plain"):
        for i in range(5):
            assert together[f"{name}/{i}"]["ids"] == alone[name]["ids"], (name, i)
    for fault in faulty.REFUSED:
        assert "faulty" in together[fault]["error"], together[fault]
    for fault in faulty.ENDED:
        failed = together[fault]
        reason = str(failed.get("error") or failed["finish"])
        hook = (faulty.RAISES | faulty.WRONG)[fault]
        assert "the method faulty of this request" in reason, (fault, reason)
        assert f"in its hook {hook}" in reason
        assert "/a/path" not in reason
    for fault in (*faulty.INVALID, *faulty.GREEDY):
        counts = together[fault]["trace"]["counts"]
        assert counts["others"]["faulty_steps"] == counts["tokens"] == 6, fault


def test_the_examples_methods_run(engines, reference):
    run = runs_of(engines, "overlap")[0]
    for name in OUTSIDE:
        assert run[name]["ids"] == reference["qwen3"][name]
        counts = run[name]["trace"]["counts"]
        assert 0 < counts["latent_steps"] <= counts["tokens"]
    pulse = run["pulse-gate"]["trace"]["counts"]
    assert pulse["latent_steps"] < pulse["thinking_tokens"]


def test_a_scheduler_without_tokenlens_ends_the_start_and_only_that(engines):
    # SGLang logs that the plugin could not be imported there, and goes on.
    found = engines["stock"]["beside"]
    assert found["error"].startswith("SystemExit")
    assert "started without tokenlens" in found["error"]
    assert found["left"] == []
    # The engine beside it goes on as if nothing had been.
    assert engines["stock"]["after"] == engines["stock"]["runs"]


def test_an_engine_without_tokenlens_refuses_specs(engines):
    error = runs_of(engines, "stock")[-1]["spec"]["error"]
    assert error.startswith("ValueError")
    assert "--enable-tokenlens" in error


def test_a_history_that_is_too_small_ends_requests_with_its_reason(engines, reference):
    (run,) = runs_of(engines, "small-history")
    lost = [name for name, one in run.items() if "error" in one]
    assert lost
    assert all("--tokenlens-history-mib" in run[name]["error"] for name in lost)
    # The others are right.
    assert len(lost) < len(run)
    for name in set(run) - set(lost):
        assert run[name]["ids"] == reference["qwen3"][name.split("/")[0]]


def test_what_goes_wrong_with_one_request_stays_with_it(engines):
    alone, together = runs_of(engines, "overlap")[-2:]
    for name in ("not-admitted", "not-decided"):
        failed = together[name]
        assert "ended this request and no other" in str(failed.get("error") or failed["finish"])
    for name in ("soft", "plain"):
        assert together[name]["ids"] == alone[name]["ids"]
