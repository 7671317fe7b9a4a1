"""Specs are frozen values that survive JSON and YAML; profiles fill the fields they document."""

import json

import pytest
import yaml
from pydantic import ValidationError

from tokenlens import DecodingSpec, load_spec, parse_spec, preset
from tokenlens.methods.alpha_one.config import ALPHA_ONE_STEP_ENDS
from tokenlens.spec import (
    METHOD_CONFIGS,
    RECIPES,
    AnswerNow,
    Blend,
    ColdStop,
    DirichletNoise,
    Gate,
    GumbelNoise,
    NoThinking,
    PhaseConfig,
    RandomRoute,
    SoftThinking,
    SwitchControl,
    Top1,
    TraceConfig,
    preset_names,
)

SPECS = {
    "empty": DecodingSpec(),
    "soft": DecodingSpec(methods=(SoftThinking(),), seed=7),
    "everything": DecodingSpec(
        methods=(
            SoftThinking(profile="published", cold_stop=ColdStop(entropy_unit="fraction")),
            GumbelNoise(temperature=0.25),
            Top1(),
            RandomRoute(latent_share=0.25),
            AnswerNow(after=3, text="so: "),
        ),
        seed=(1 << 63) - 1,
        phase=PhaseConfig(think_start="<a>", think_end=(4, 5)),
        trace=TraceConfig(level="full", max_steps=3, max_entries=2),
    ),
    "dirichlet": DecodingSpec(methods=(SoftThinking(), DirichletNoise(), NoThinking())),
}


@pytest.mark.parametrize("name", SPECS)
def test_json_round_trip(name):
    spec = SPECS[name]
    assert parse_spec(spec.model_dump_json()) == spec
    assert DecodingSpec.model_validate_json(spec.model_dump_json()) == spec


@pytest.mark.parametrize("name", SPECS)
def test_mapping_round_trip(name):
    spec = SPECS[name]
    assert parse_spec(spec.model_dump()) == spec
    assert parse_spec(json.loads(json.dumps(spec.model_dump()))) == spec


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("suffix", [".yaml", ".yml", ".json"])
def test_files_give_the_same_spec(name, suffix, tmp_path):
    spec, path = SPECS[name], tmp_path / f"spec{suffix}"
    data = spec.model_dump(mode="json")
    path.write_text(json.dumps(data) if suffix == ".json" else yaml.safe_dump(data))
    assert load_spec(path) == spec
    assert load_spec(str(path)) == spec


def test_a_file_may_start_from_a_preset(tmp_path):
    path = tmp_path / "spec.yaml"
    path.write_text("preset: qwen3-gumbel\nseed: 3\n")
    assert load_spec(path) == preset("qwen3-gumbel").model_copy(update={"seed": 3})


def test_a_spec_is_returned_as_it_is():
    assert parse_spec(SPECS["soft"]) is SPECS["soft"]


@pytest.mark.parametrize(
    ("model", "field", "value"),
    [
        (DecodingSpec(), "seed", 1),
        (SoftThinking(), "top_k", 3),
        (ColdStop(), "patience", 3),
        (PhaseConfig(), "think_end", "x"),
        (TraceConfig(), "level", "full"),
    ],
)
def test_models_are_frozen(model, field, value):
    with pytest.raises(ValidationError, match="frozen"):
        setattr(model, field, value)


def test_specs_are_hashable_values():
    assert len({SPECS["soft"], parse_spec(SPECS["soft"].model_dump())}) == 1


def test_methods_may_stand_in_any_order():
    spec = DecodingSpec(methods=(Top1(), GumbelNoise(), SoftThinking()))
    assert [config.method for config in spec.methods] == ["top1", "gumbel_noise", "soft_thinking"]


def test_the_json_schema_names_bounds_and_methods():
    schema = DecodingSpec.model_json_schema()
    json.dumps(schema)
    soft = schema["$defs"]["SoftThinking"]["properties"]
    assert (soft["top_k"]["minimum"], soft["top_k"]["maximum"]) == (0, 64)
    assert (soft["top_p"]["minimum"], soft["top_p"]["maximum"]) == (2.0**-126, 1)
    assert schema["properties"]["seed"]["minimum"] == 0
    assert schema["$defs"]["SoftThinking"]["additionalProperties"] is False
    mapping = schema["properties"]["methods"]["items"]["discriminator"]["mapping"]
    assert set(mapping) == set(METHOD_CONFIGS)


def test_the_json_schema_has_no_dangling_reference():
    schema = DecodingSpec.model_json_schema()

    def references(node):
        if isinstance(node, dict):
            if isinstance(node.get("$ref"), str):
                yield node["$ref"]
            node = list(node.values())
        if isinstance(node, list):
            for child in node:
                yield from references(child)

    found = set(references(schema))
    assert found
    assert {reference.removeprefix("#/$defs/") for reference in found} <= set(schema["$defs"])


# What each published profile changes, as the docstrings' tables say it.
WAVE = {"forms": "bare", "unknown_words": "skip", "counted": "output", "active": "until_end"}
CONCEPT = {
    "start": "first_token",
    "forced_end": "last_token",
    "greedy_answer": True,
    "abort_answer_on_low_entropy": True,
}
SWITCHING = {
    "mixture": "full",
    "start": "first_token",
    "goes_on_in_answer": True,
    "injected_end_locks": False,
    "injected_as_token": False,
    "restarts": True,
    "hidden_end_locks": True,
    "rearms": True,
}
PUBLISHED = {
    "cyclic_reflex": WAVE,
    "static_window": WAVE,
    "edt": {"floor": 1e-6},
    "alpha_one": {
        "words": ("Wait",),
        "forms": "bare",
        "counted": "output",
        "step_ends": ALPHA_ONE_STEP_ENDS,
        "step_match": "encoded",
    },
    "hapo": {"sign": "as_given", "floor": 1e-6},
    "nowait": {
        "match": "substring",
        "exclude": ("ohio", "butane", "button", "butterfly"),
        "active": "output",
    },
    "soft_thinking": CONCEPT,
    "think_router": CONCEPT,
    "east": {"where": "all"},
    "budget_guidance": {"sure_only": True},
    "dirichlet_noise": {"probability_floor": 1e-7},
    "soft_grpo_noise": {"log_probability_of": "draw"},
    "latent_grpo": {"forced_end": "first_token", "greedy_answer": True},
    "soft_tokens": {"mixture": "full"},
    "latent_mas": {"realign": False, "precision": "float32"},
    "selar": {"start": "first_token", "goes_on_in_answer": True},
    "swi_reasoning": {**SWITCHING, "first": Blend(tokens=("\\n",), keep=0.9)},
    "lead": {
        **SWITCHING,
        "gate": Gate(
            of="raw",
            trend=True,
            enter=1.0,
            leave=0.2,
            enter_at_bound=False,
            first="latent",
            dwell_discrete=256,
            exempt="math",
        ),
        "first": Blend(tokens=("\n",), keep=0.9),
        "enter": Blend(tokens=("<|image_pad|>",), keep=0.6, moves=True),
        "leave": Blend(tokens="think_end", keep=0.7, moves=True),
        "switch_control": SwitchControl(after=5),
    },
}


def _config(name, **settings):
    statistics = {"median": 0.5, "std": 1.0, "scale_pos": 1.0, "scale_neg": -1.0}
    required = {
        "answer_now": {"after": 5},
        "hapo": statistics,
        "thinking_budget": {"budget": 9},
        "alpha_one": {"average_thinking": 100},
    }.get(name, {})
    return METHOD_CONFIGS[name].model_validate({"method": name, **required, **settings})


def _flat(config):
    """All fields of a config, its quirks among them."""
    quirks = dict(config.rules) if config.quirks_model() else {}
    return {**{name: value for name, value in config if name != "quirks"}, **quirks}


@pytest.mark.parametrize("name", METHOD_CONFIGS)
def test_the_published_profile_fills_exactly_the_documented_fields(name):
    default, published = _flat(_config(name)), _flat(_config(name, profile="published"))
    changed = {field: value for field, value in published.items() if value != default[field]}
    assert changed == {"profile": "published", **PUBLISHED.get(name, {})}


@pytest.mark.parametrize(("name", "field"), [(m, f) for m, fs in PUBLISHED.items() for f in fs])
def test_a_users_field_wins_over_the_profile(name, field):
    value = _flat(_config(name))[field]
    given = {field: value}
    if field not in METHOD_CONFIGS[name].model_fields:
        given = {"quirks": given}
    config = _flat(_config(name, profile="published", **given))
    assert config == {**_flat(_config(name, profile="published")), field: value}


def test_there_is_a_preset_for_every_family_and_recipe():
    assert len(preset_names()) == len(set(preset_names())) == 60
    assert preset_names()[:10] == list(RECIPES)


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_a_valid_spec(name):
    spec = preset(name)
    assert parse_spec(name) == spec
    assert parse_spec(spec.model_dump_json()) == spec
    # A recipe is for every model; the older names have their family's markers, in full.
    assert (spec.phase == PhaseConfig()) == (name in RECIPES)
    assert isinstance(spec.phase.think_end, str) or name in RECIPES


def test_the_published_preset_is_the_reference_readmes_setting():
    (soft,) = preset("qwq-soft-published").methods
    assert soft.profile == "published"
    assert (soft.temperature, soft.top_k, soft.top_p) == (0.6, 30, 0.95)
    assert (soft.min_p, soft.max_entries) == (0.001, 10)
    assert (soft.cold_stop.entropy_threshold, soft.cold_stop.patience) == (0.01, 256)
