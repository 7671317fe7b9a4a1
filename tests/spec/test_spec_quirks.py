"""What only ``published`` sets stands in ``quirks``; the old places are taken for one release."""

import json
import warnings

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenlens import DecodingSpec, SpecError, parse_spec
from tokenlens.serving.arguments import spec_of
from tokenlens.spec import METHOD_CONFIGS

REQUIRED = {
    "answer_now": {"after": 5},
    "hapo": {"median": 0.5, "std": 1.0, "scale_pos": 1.0, "scale_neg": -1.0},
    "thinking_budget": {"budget": 9},
    "alpha_one": {"average_thinking": 100},
}
WITH = {name: config for name, config in METHOD_CONFIGS.items() if config.quirks_model()}
QUIRKS = [
    (name, quirk) for name, config in WITH.items() for quirk in config.quirks_model().model_fields
]
BESIDE = [{"method": "soft_thinking"}]


def spec(name, **fields):
    """A spec with a method, and with a latent one where it needs that."""
    beside = BESIDE if METHOD_CONFIGS[name].requires else []
    return {"methods": [*beside, {"method": name, **REQUIRED.get(name, {}), **fields}]}


def other(name, quirk):
    """A value of a quirk that is not its default."""
    config = METHOD_CONFIGS[name]
    model = config.quirks_model()
    default = model.model_fields[quirk].default
    if isinstance(default, bool):
        return not default
    values = model.model_json_schema()["properties"][quirk].get("enum", ["x"])
    found = next((value for value in values if value != default), None)
    return {"exclude": ["x"], "probability_floor": 0.25}.get(quirk, found)


def test_a_third_of_the_fields_are_quirks_of_published():
    assert len(QUIRKS) >= 40
    assert {name for name, config in METHOD_CONFIGS.items() if "quirks" in config.published} < set(
        WITH
    )


@pytest.mark.parametrize(("name", "quirk"), QUIRKS)
def test_an_old_place_is_taken_and_the_warning_names_the_new_one(name, quirk):
    value = other(name, quirk)
    new = parse_spec(spec(name, quirks={quirk: value}))
    with pytest.warns(DeprecationWarning, match=rf"{name}: .* {quirk} -> quirks\.{quirk}") as seen:
        old = parse_spec(spec(name, **{quirk: value}))
    assert len(seen) == 1
    assert old == new != parse_spec(spec(name))
    with pytest.warns(DeprecationWarning, match=rf"quirks\.{quirk}"):
        read = getattr(new.methods[-1], quirk)
    assert read == getattr(new.methods[-1].rules, quirk)


@pytest.mark.parametrize(("name", "quirk"), QUIRKS)
def test_a_flat_argument_of_the_old_name_changes_what_a_preset_has_set(name, quirk):
    default = METHOD_CONFIGS[name].quirks_model().model_fields[quirk].default
    whole = spec(name, profile="published")
    flat = {"tokenlens": whole, f"tokenlens_{name}.{quirk}": default}
    with pytest.warns(DeprecationWarning, match=rf"quirks\.{quirk}"):
        old = spec_of(flat)
    assert old == spec_of({"tokenlens": whole, f"tokenlens_{name}.quirks.{quirk}": default})
    assert getattr(old.methods[-1].rules, quirk) == default


@pytest.mark.parametrize("name", WITH)
def test_several_old_places_are_one_warning(name):
    flat = {quirk: other(name, quirk) for one, quirk in QUIRKS if one == name}
    with pytest.warns(DeprecationWarning, match="next release") as seen:
        parse_spec(spec(name, **flat))
    assert len(seen) == 1
    assert all(f"quirks.{quirk}" in str(seen[0].message) for quirk in flat)


@pytest.mark.parametrize(("name", "quirk"), QUIRKS)
def test_both_places_at_once_are_refused(name, quirk):
    value = METHOD_CONFIGS[name].quirks_model().model_fields[quirk].default
    with pytest.raises(SpecError, match=rf"got {quirk} and quirks\.{quirk}; allowed: one of them"):
        parse_spec(spec(name, **{quirk: value, "quirks": {quirk: value}}))


@pytest.mark.parametrize("name", WITH)
def test_no_quirk_shows_where_none_is_set(name):
    for fields in ({}, {"quirks": None}, {"quirks": {}}):
        found = parse_spec(spec(name, **fields))
        assert found.methods[-1].quirks is None
        assert "quirks" not in found.model_dump()["methods"][-1]
        assert "quirks" not in json.loads(found.model_dump_json())["methods"][-1]


def _quirks(name):
    fields = METHOD_CONFIGS[name].quirks_model().model_fields
    return st.fixed_dictionaries(
        {},
        optional={
            quirk: st.sampled_from([fields[quirk].default, other(name, quirk)]) for quirk in fields
        },
    )


CASES = st.sampled_from(sorted(WITH)).flatmap(
    lambda name: st.tuples(
        st.just(name), st.sampled_from(["default", "published"]), st.none() | _quirks(name)
    )
)


@given(CASES)
@settings(max_examples=300, deadline=None)
def test_every_combination_survives_json_yaml_and_a_second_reading(case):
    name, profile, quirks = case
    fields = {} if quirks is None else {"quirks": quirks}
    found = parse_spec(spec(name, profile=profile, **fields))
    published = METHOD_CONFIGS[name].published.get("quirks", {}) if profile == "published" else {}
    wanted = METHOD_CONFIGS[name].quirks_model().model_validate({**published, **(quirks or {})})
    assert found.methods[-1].rules == wanted
    dumped = found.model_dump_json()
    for again in (
        parse_spec(dumped),
        parse_spec(found.model_dump()),
        parse_spec(yaml.safe_load(yaml.safe_dump(json.loads(dumped)))),
        DecodingSpec(methods=found.methods),
    ):
        assert again == found
        assert again.model_dump_json() == dumped
        assert hash(again) == hash(found)


@given(CASES)
@settings(max_examples=100, deadline=None)
def test_a_dump_of_the_last_release_is_the_same_spec(case):
    name, profile, quirks = case
    fields = {} if quirks is None else {"quirks": quirks}
    found = parse_spec(spec(name, profile=profile, **fields))
    old = found.model_dump()
    config = old["methods"][-1]
    config.pop("quirks", None)
    # All fields lay beside one another, whether they were set or not.
    config.update(found.methods[-1].rules.model_dump())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        assert parse_spec(old) == found


@pytest.mark.parametrize("wrong", [3, "x", [], True])
def test_quirks_that_are_no_mapping(wrong):
    with pytest.raises(
        SpecError, match=r"methods\[0\]\.quirks: got .*; allowed: a mapping or null"
    ):
        parse_spec(spec("soft_thinking", quirks=wrong))


def test_an_unknown_quirk_is_named():
    with pytest.raises(SpecError, match=r"quirks\.strat: got the unknown field 'strat'.*say start"):
        parse_spec(spec("soft_thinking", quirks={"strat": 1}))
