"""What is refused, where, and in which words; and that the engine goes on."""

import pytest
from conformance_models import WRONG_FILES
from vllm_support import needs_vllm

pytestmark = [needs_vllm, pytest.mark.slow, pytest.mark.timeout(3000)]


@pytest.fixture(scope="module")
def run(first_runner):
    """Requests that are wrong among requests that are right."""
    return first_runner["admission"]["runs"][0]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("not-allowed", ["methods[0].method", "'no_thinking'", "soft_thinking, gumbel_noise"]),
        ("too-wide", ["methods[0].max_entries", "17", "at most 16"]),
        ("vectors", ["coconut.", "at most 40 vectors of 256 bytes", "vectors_mib", "fed 50"]),
        ("full-trace", ["trace.level", "'full'", "'summary'"]),
        ("marker", ["phase.think_end", "4096", "96"]),
        ("no-tokenizer", ["phase.think_start", "no tokenizer"]),
        ("outside", ["methods[0].method", "'no_echo'", "my-method 0.1.0", "additional_config"]),
        ("value", ["methods[0].top_k", "-1", "at least 0"]),
        ("field", ["methods[0].topk", "top_k"]),
        ("unknown", ["tokenlens_sofd_thinking.top_k", "soft_thinking"]),
        ("preset", ["preset", "'qwen3-sofd'", "FAMILY-RECIPE"]),
        ("ours", ["_tokenlens_sample"]),
        ("our-seed", ["_tokenlens_seed"]),
    ],
)
def test_a_bad_spec_is_refused_with_its_field(run, name, words):
    message = run["errors"][name]
    assert all(word in message for word in words), message


def test_the_engine_goes_on(run, first_runner):
    assert len(run["outputs"]["right"]["ids"]) == 8
    assert run["outputs"]["right"]["trace"]["counts"]["latent_steps"] == 8
    assert "aborted" not in run["outputs"]
    assert first_runner["admission"]["leaks"] == {"slots": 0, "pages": 0, "live": 0}


def test_markers_for_which_there_is_no_room_are_refused_until_there_is(first_runner):
    run = first_runner["admission"]["runs"][1]
    assert set(run["errors"]) == {"too-many", "later-too-many"}
    for message in run["errors"].values():
        assert "phase: got 'markers of several tokens, beside 2 other ones" in message
        assert "at most 2 different ones at once" in message
    latent = {name: one["trace"]["counts"]["latent_steps"] for name, one in run["outputs"].items()}
    assert latent == {"long": 30, "short": 5, "same": 5, "later": 5, "last": 5}


def test_what_no_front_end_of_ours_admitted_fails_alone(run):
    outputs = run["outputs"]
    for name in ("not-allowed", "right", "forged"):
        failed = outputs[f"stranger-{name}"]
        assert failed["finish_reason"] == "error"
        assert failed["trace"] is None or failed["trace"]["counts"]["tokens"] == 0
    # What brings no spec is not looked at, and neither are those beside it.
    assert outputs["stranger-plain"]["finish_reason"] == "length"
    assert outputs["stranger-plain"]["ids"] == outputs["plain"]["ids"]
    assert outputs["right"]["trace"]["counts"]["latent_steps"] == 8


def test_samples_of_one_prompt_have_their_own_noise(run):
    many = [tuple(one["ids"]) for one in run["outputs"]["samples"]["samples"]]
    assert len(many) == len(set(many)) == 3
    assert list(many[0]) == run["outputs"]["one-sample"]["ids"]
    assert all(one["trace"]["counts"]["tokens"] for one in run["outputs"]["samples"]["samples"])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("refused-speculative", ["peculative"]),
        ("refused-embeds", ["enable_prompt_embeds"]),
        ("refused-setting", ["allow", "sofd"]),
        ("refused-method", ["method 'no_ech'", "got no entry point", "no_echo, pulse_gate"]),
        ("refused-broken", ["method 'unmade'", "OSError", "no such file"]),
        ("refused-version", ["0.99.0", "TOKENLENS_ANY_VLLM"]),
        ("refused-pooling", ["pooling", "logits_processors"]),
        ("refused-pipeline", ["pipeline_parallel_size: got 2"]),
        ("refused-connector", ["KV connector"]),
        *WRONG_FILES,
        ("refused-quantised", ["embed_tokens", "CompressedTensorsEmbedding", "not quantised"]),
    ],
)
def test_an_engine_that_cannot_host_specs_does_not_start(first_runner, name, words):
    message = first_runner[name]["error"]
    assert all(word in message for word in words), message


def test_an_untested_version_goes_on_if_its_operator_says_so(first_runner, reference):
    outputs = first_runner["other-version"]["runs"][0]["outputs"]
    assert len(outputs) == 2
    assert all(one["ids"] == reference["qwen3"][name] for name, one in outputs.items())


def test_adapters_of_the_attention_are_fine_and_of_the_embedding_are_not(first_runner):
    run = first_runner["adapters"]["runs"][0]
    outputs = run["outputs"]
    assert set(run["errors"]) == {"soft-embedding"}
    message = run["errors"]["soft-embedding"]
    assert "lora_request: got 'embedding'" in message
    assert "embed_tokens" in message
    assert outputs["soft-queries"]["trace"]["counts"]["latent_steps"] == 16
    assert outputs["hidden-queries"]["trace"]["counts"]["latent_steps"] == 6
    # A method that feeds no mixtures does not mind: vLLM may.
    assert "ends-embedding" in outputs
