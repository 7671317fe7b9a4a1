"""Seeds that a spec leaves open: who gets which."""

import pytest

from tokenlens.spec import METHOD_CONFIGS, DecodingSpec, parse_spec, preset, preset_names
from tokenlens.spec.seeds import find_seed, is_open, seed_of_sample, with_seed

NOISY = parse_spec({"methods": [{"method": "soft_thinking"}, {"method": "gumbel_noise"}]})
DRAW = {
    "gumbel_noise", "dirichlet_noise", "soft_grpo_noise", "random_route", "cot2", "alpha_one",
    "soft_tokens",
}  # fmt: skip
REQUIRED = {
    "alpha_one": {"average_thinking": 5},
    "answer_now": {"after": 1},
    "thinking_budget": {"budget": 1},
    "hapo": {"median": 1.0, "std": 1.0, "scale_pos": 0.1, "scale_neg": 0.1},
}


def test_no_preset_and_no_default_has_a_seed():
    assert DecodingSpec().seed is None
    assert {preset(name).seed for name in preset_names()} == {None}


@pytest.mark.parametrize("name", METHOD_CONFIGS)
def test_methods_that_draw_say_so(name):
    config = METHOD_CONFIGS[name].model_validate({"method": name, **REQUIRED.get(name, {})})
    assert config.uses_seed == (name in DRAW)


@pytest.mark.parametrize(
    ("method", "draws"),
    [
        ({"method": "latent_grpo", "noise": "one_sided"}, True),
        ({"method": "soft_tokens", "noise_scale": 0.0}, False),
        ({"method": "s1", "temperature": 0.6}, True),
        ({"method": "swi_reasoning", "switch_control": {"temperature": 0.6}}, True),
        ({"method": "swi_reasoning", "switch_control": {}}, False),
    ],
)
def test_whether_a_method_draws_may_depend_on_its_fields(method, draws):
    assert parse_spec({"methods": [method]}).uses_seed == draws


def test_a_seed_is_open_only_where_something_is_drawn():
    assert is_open(NOISY)
    assert not is_open(NOISY.model_copy(update={"seed": 0}))
    assert not is_open(preset("qwen3-soft"))


def test_samples_have_seeds_of_their_own_that_a_spec_can_hold():
    for base in (0, 7, (1 << 63) - 1, find_seed(-5), find_seed(1 << 80)):
        seeds = [with_seed(NOISY, base, index).seed for index in range(500)]
        assert len(set(seeds)) == 500
        assert seeds[0] == base
        for seed in seeds:
            assert parse_spec({"seed": seed}).seed == seed


def test_a_seed_is_drawn_or_the_engines():
    assert len({find_seed() for _ in range(50)}) == 50
    assert [find_seed(seed) for seed in (0, 7)] == [0, 7]
    assert seed_of_sample(3, 1) == seed_of_sample(3, 1) != seed_of_sample(4, 1)
