"""What is refused, where, and in which words; and that the engine goes on."""

import pytest
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
        ("full-trace", ["trace.level", "'full'", "'summary'"]),
        ("marker", ["phase.think_end", "4096", "96"]),
        ("no-tokenizer", ["phase.think_start", "no tokenizer"]),
        ("value", ["methods[0].top_k", "-1", "at least 0"]),
        ("field", ["methods[0].topk", "top_k"]),
        ("unknown", ["tokenlens_sofd_thinking.top_k", "soft_thinking"]),
        ("preset", ["preset", "'qwen3-sofd'", "FAMILY-RECIPE"]),
        ("ours", ["_tokenlens_sample"]),
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
        ("refused-version", ["0.99.0", "TOKENLENS_ANY_VLLM"]),
    ],
)
def test_an_engine_that_cannot_host_specs_does_not_start(first_runner, name, words):
    message = first_runner[name]["error"]
    assert all(word in message for word in words), message
