"""What people write first, and what an error tells them to write."""

import pytest

from tokenlens import SpecError, load_spec, parse_spec
from tokenlens.spec import METHOD_CONFIGS, DecodingSpec
from tokenlens.spec.hints import FLAGS

SOFT = "soft_thinking"


def said(body):
    with pytest.raises(SpecError) as caught:
        parse_spec(body)
    return str(caught.value)


@pytest.mark.parametrize(
    ("methods", "hint"),
    [
        ([SOFT], "say {method: soft_thinking}"),
        (SOFT, "say [{method: soft_thinking}]"),
        ({"method": SOFT}, "[{method: ...}]"),
        ([{"method": "soft-thinking"}], "say {method: soft_thinking}"),
        ([{"method": "SoftThinking"}], "say {method: soft_thinking}"),
        (["tip", "nowait"], "say {method: nowait}"),
        ([{"name": SOFT}], "say {method: soft_thinking, ...}"),
        ([{"type": "soft-thinking", "top_k": 3}], "say {method: soft_thinking, ...}"),
        ([{SOFT: {"top_k": 3}}], "say {method: soft_thinking, ...}"),
        ([{"method": "swir"}], "say {method: swi_reasoning}"),
        (["budget_forcing"], "say {method: s1}"),
        ([{"method": "think_at_hard"}], "tokenlens.hf.think_at_hard_generate_kwargs: its second"),
        (["Think-at-Hard"], "for which vLLM and SGLang have no place"),
    ],
)
def test_methods_are_mappings_in_a_list(methods, hint):
    assert hint in said({"methods": methods})


@pytest.mark.parametrize(
    ("text", "hint"),
    [("1e-2", "say 0.01: YAML"), ("1E3", "say 1000: YAML"), ("0.5", "say 0.5, without quotes")],
)
def test_numbers_that_came_as_texts(text, hint):
    assert hint in said({"methods": [{"method": SOFT, "temperature": text}]})
    for text in ("warm", "inf", "-inf", "nan", "1e400"):
        assert "say" not in said({"methods": [{"method": SOFT, "temperature": text}]})


def test_yaml_s_numbers_from_a_file(tmp_path):
    path = tmp_path / "spec.yaml"
    path.write_text("methods: [{method: soft_thinking, min_p: 1e-2}]")
    with pytest.raises(SpecError, match=r"methods\[0\]\.min_p: got '1e-2'; allowed: say 0\.01: "):
        load_spec(path)
    path.write_text("methods: [{method: nowait, words: [no, wait]}]")
    with pytest.raises(SpecError, match=r"words\[0\]: got False; allowed: put it in quotes"):
        load_spec(path)
    for level in ("off", "on"):
        path.write_text(f"trace: {{level: {level}}}")
        with pytest.raises(SpecError, match=r"trace\.level: got .*; allowed: put it in quotes"):
            load_spec(path)
    for level, right in (("off", "'off'"), ("full", "full"), ("on", "full"), ("'off'", "'off'")):
        path.write_text(f"trace: {level}")
        with pytest.raises(SpecError, match=rf"trace: got .*; allowed: say {{level: {right}}}"):
            load_spec(path)


@pytest.mark.parametrize("flag", FLAGS)
@pytest.mark.parametrize("dress", [str, lambda f: "--" + f, lambda f: f.replace("_", "-")])
def test_flags_of_the_papers_programs_are_known(flag, dress):
    for body in ({dress(flag): 1}, {"methods": [{"method": SOFT, dress(flag): 1}]}):
        if dress(flag) not in DecodingSpec.model_fields:
            assert "; allowed: say " in said(body)


def test_what_the_flags_are_said_to_be_is_there():
    fields = {name for config in METHOD_CONFIGS.values() for name in config.model_fields}
    assert {"max_entries", "top_k", "concentration", "average_thinking", "ignore_end"} <= fields
    assert "max_entries" in FLAGS["max_topk"]
    assert "top_k" in FLAGS["max_topk"]


@pytest.mark.parametrize(
    ("body", "hint"),
    [
        ({SOFT: {}}, "say methods: [{method: soft_thinking}]"),
        ({"methods": [{"method": SOFT, "temprature": 1}]}, "say temperature"),
        ({"methods": [{"method": SOFT, "top-k": 1}]}, "say top_k"),
        ({"tracing": {}}, "say trace"),
        ({"temperature": 0.6}, "say methods: [{method: ..., temperature: ...}]"),
        ({"top-k": 5}, "say methods: [{method: ..., top_k: ...}]"),
        ({"think_end": "</think>"}, "say phase: {think_end: ...}"),
        ({"methods": [{"method": SOFT, "think_end": "</think>"}]}, "say phase: {think_end: ...}"),
    ],
)
def test_near_misses(body, hint):
    assert hint in said(body)
