"""A wrong spec names the field, what was got, and what is allowed."""

import json
import math
import sys

import pytest
from built_in import bind
from pydantic import ValidationError

from tokenlens import DecodingSpec, SpecError, load_spec, parse_spec
from tokenlens.spec import METHOD_CONFIGS

SOFT = {"method": "soft_thinking"}


def soft(**settings):
    return {"methods": [{**SOFT, **settings}]}


def cold(**settings):
    return soft(cold_stop=settings)


def beside_soft(**config):
    return {"methods": [SOFT, config]}


def methods(*names):
    return {"methods": [{"method": name} for name in names]}


def one(name, **config):
    return {"methods": [{"method": name, **config}]}


def declared():
    """Cases that configs declare: required fields, methods beside which one must stand, twice."""
    for name, config in METHOD_CONFIGS.items():
        required = [key for key, info in config.model_fields.items() if info.is_required()]
        if required:
            meaning = config.model_fields[required[0]].description
            case = (methods(name), f"methods[0].{required[0]}", "nothing", meaning)
            yield f"{name} without {required[0]}", case
            continue
        yield f"{name} twice", (methods(name, name), "methods", f"{name} twice", "remove one")
        if config.requires:
            yield f"{name} alone", (methods(name), "methods", f"{name} alone", "beside")


# (what is given, the field, what was got, a part of what is allowed)
WRONG = dict(declared()) | {
    "negative threshold": (
        cold(entropy_threshold=-0.1),
        "methods[0].cold_stop.entropy_threshold", "-0.1", "at least 1e-09"),
    "threshold of zero": (
        cold(entropy_threshold=0), "methods[0].cold_stop.entropy_threshold", "0", "at least 1e-09"),
    "patience of zero": (cold(patience=0), "methods[0].cold_stop.patience", "0", "at least 1"),
    "unknown entropy unit": (
        cold(entropy_unit="bits"), "methods[0].cold_stop.entropy_unit", "'bits'", "'nats'"),
    "unknown field of cold_stop": (
        cold(treshold=1), "methods[0].cold_stop.treshold", "unknown field 'treshold'",
        "entropy_threshold, entropy_unit, patience"),
    "top_k below 0": (soft(top_k=-1), "methods[0].top_k", "-1", "at least 0 and at most 64"),
    "top_k above 64": (soft(top_k=65), "methods[0].top_k", "65", "at least 0 and at most 64"),
    "top_k as text": (soft(top_k="3"), "methods[0].top_k", "'3'", "an integer"),
    "top_k as bool": (soft(top_k=True), "methods[0].top_k", "True", "an integer"),
    "top_k as float": (soft(top_k=3.0), "methods[0].top_k", "3.0", "an integer"),
    "temperature below 0": (soft(temperature=-0.5), "methods[0].temperature", "-0.5", "at least 0"),
    "temperature NaN": (soft(temperature=math.nan), "methods[0].temperature", "nan", "finite"),
    "temperature infinite": (soft(temperature=math.inf), "methods[0].temperature", "inf", "finite"),
    "top_p of 0": (soft(top_p=0.0), "methods[0].top_p", "0.0", "at least 1.175494e-38"),
    "min_p of 1": (soft(min_p=1.0), "methods[0].min_p", "1.0", "at most 0.9999999"),
    "max_entries of 0": (soft(max_entries=0), "methods[0].max_entries", "0", "at least 1"),
    "unknown profile": (soft(profile="fixed"), "methods[0].profile", "'fixed'", "'published'"),
    "unknown start": (
        soft(quirks={"start": "now"}), "methods[0].quirks.start", "'now'", "'first_token'"),
    "unknown field of a method": (
        soft(temprature=1.0), "methods[0].temprature", "unknown field", "temperature"),
    "unknown field of the spec": (
        {"sed": 1}, "sed", "unknown field 'sed'", "methods, phase, seed, trace"),
    "unknown method": (methods("soft"), "methods[0].method", "'soft'", "soft_thinking"),
    "method not named": (
        {"methods": [{"top_k": 3}]}, "methods[0].method", "no method name", "answer_now, "),
    "method as a text": ({"methods": ["soft_thinking"]}, "methods[0]", "'soft_thinking'", "one of"),
    "methods as a mapping": ({"methods": SOFT}, "methods", "{'method'", "a list"),
    "17 methods": ({"methods": [SOFT] * 17}, "methods", "[{" [1:], "length at most 16"),
    "top1 alone": (methods("top1"), "methods", "top1 alone", "'soft_thinking'"),
    "two kinds of noise": (
        methods("soft_thinking", "gumbel_noise", "dirichlet_noise"),
        "methods", "gumbel_noise and dirichlet_noise", "one kind of noise at a time"),
    "two ends of thinking": (
        {"methods": [{"method": "no_thinking"}, {"method": "answer_now", "after": 3}]},
        "methods", "no_thinking and answer_now", "one of the two"),
    "dirichlet without top_k": (
        {"methods": [{**SOFT, "top_k": 0}, {"method": "dirichlet_noise"}]},
        "methods", "soft_thinking.top_k = 0", "1 to 64"),
    "tau of 0": (
        beside_soft(method="gumbel_noise", temperature=0),
        "methods[1].temperature", "0", "at least 1e-06"),
    "negative alpha": (
        beside_soft(method="dirichlet_noise", concentration=-4),
        "methods[1].concentration", "-4", "at least 1e-06"),
    "share above 1": (
        beside_soft(method="random_route", latent_share=1.5),
        "methods[1].latent_share", "1.5", "at most 1"),
    "empty forced text": (
        {"methods": [{"method": "no_thinking", "text": ""}]},
        "methods[0].text", "''", "at least 1"),
    "no words": (
        one("cyclic_reflex", words=[]), "methods[0].words", "[]", "of length at least 1"),
    "an empty word": (one("tip", words=["a", ""]), "methods[0].words[1]", "''", "at least 1"),
    "65 words": (one("nowait", words=["a"] * 65), "methods[0].words", "['a'", "at most 64"),
    "period of 0": (one("cyclic_reflex", period=0), "methods[0].period", "0", "at least 1"),
    "amplitude beyond its bound": (
        one("cyclic_reflex", amplitude=101), "methods[0].amplitude", "101", "at most 100"),
    "shift of two periods": (one("cyclic_reflex", shift=2), "methods[0].shift", "2", "at most 1"),
    "unknown wave": (one("cyclic_reflex", wave="saw"), "methods[0].wave", "'saw'", "'cosine'"),
    "windows out of order": (
        one("cyclic_reflex", windows=[[5, 9], [0, 4]]),
        "methods[0].windows", "[[5, 9], [0, 4]]", "in order"),
    "windows that overlap": (
        one("static_window", windows=[[0, 5], [4, 9]]), "methods[0].windows", "", "overlapping"),
    "a window that is empty": (
        one("static_window", windows=[[4, 4]]), "methods[0].windows", "[[4, 4]]", "start < stop"),
    "a window below 0": (
        one("static_window", windows=[[-1, 4]]), "methods[0].windows[0][0]", "-1", "at least 0"),
    "a window of one": (one("static_window", windows=[[1]]), "methods[0].windows[0][1]", "", ""),
    "nine windows": (
        one("static_window", windows=[[i, i + 1] for i in range(9)]),
        "methods[0].windows", "[[0, 1]", "at most 8"),
    "a negative penalty": (one("tip", penalty=-1), "methods[0].penalty", "-1", "at least 0"),
    "a budget below zero": (
        one("thinking_budget", budget=-1), "methods[0].budget", "-1", "at least 0"),
    "a budget as bool": (
        one("thinking_budget", budget=True), "methods[0].budget", "True", "an integer"),
    "a ramp longer than the budget": (
        one("thinking_budget", budget=9, ramp=1.5), "methods[0].ramp", "1.5", "at most 1"),
    "two budgets": (
        {"methods": [{"method": "thinking_budget", "budget": 3},
                     {"method": "s1", "max_thinking": 3}]},
        "methods", "thinking_budget and s1", "one of them"),
    "one budget twice": (
        {"methods": [{"method": "thinking_budget", "budget": n} for n in (3, 4)]},
        "methods", "thinking_budget twice", "remove one"),
    "a negative limit": (one("s1", max_thinking=-1), "methods[0].max_thinking", "-1", "at least"),
    "two temperatures": (
        {"methods": [{"method": "edt"}, {"method": "hapo", "median": 0, "std": 1, "scale_pos": 1,
                                         "scale_neg": 1}]},
        "methods", "edt and hapo", "one adaptive temperature at a time"),
    "a floor of 0": (one("edt", floor=0), "methods[0].floor", "0", "at least"),
    "seed below 0": ({"seed": -1}, "seed", "-1", "at least 0"),
    "seed of 64 bits": ({"seed": 1 << 63}, "seed", "9223372036854775808", "below"),
    "seed too long to print": ({"seed": 1 << 20_000}, "seed", "int that is too long", "below"),
    "seed as float": ({"seed": 1.5}, "seed", "1.5", "an integer"),
    "marker empty": ({"phase": {"think_end": ""}}, "phase.think_end", "''", "at least 1"),
    "marker without ids": ({"phase": {"think_end": []}}, "phase.think_end", "()", "at least 1"),
    "marker of 65 characters": (
        {"phase": {"think_start": "x" * 65}}, "phase.think_start", "'xxx", "at most 64"),
    "marker of 9 tokens": (
        {"phase": {"think_end": list(range(9))}}, "phase.think_end", "(0, 1, 2", "at most 8"),
    "marker with a negative id": (
        {"phase": {"think_end": [-1]}}, "phase.think_end[0]", "-1", "at least 0"),
    "marker as a number": ({"phase": {"think_end": 4}}, "phase.think_end", "4", "a text"),
    "trace level": ({"trace": {"level": "all"}}, "trace.level", "'all'", "'summary', 'full'"),
    "trace of no steps": ({"trace": {"max_steps": 0}}, "trace.max_steps", "0", "at least 1"),
    "trace entries": ({"trace": {"max_entries": 65}}, "trace.max_entries", "65", "at most 64"),
    "trace null": ({"trace": None}, "trace", "None", "a mapping"),
    "a key that is no text": ({1: 2}, "[1]", "the key 1", "a text"),
    "unknown preset": ({"preset": "gpt-soft"}, "preset", "'gpt-soft'", "families: qwen3"),
    "preset that is no name": ({"preset": 3}, "preset", "3", "name of a preset"),
    "preset with a wrong field": (
        {"preset": "qwen3-soft", "seed": -1}, "seed", "-1", "at least 0"),
    "null": (None, "spec", "None", "a mapping"),
    "a number": (3, "spec", "3", "a mapping"),
    "a list": ([], "spec", "[]", "a mapping"),
    "name of no preset": ("softer", "preset", "'softer'", "recipes: soft"),
    "broken JSON": ('{"seed": ', "spec", "Expecting value", "a JSON object"),
    "NaN in JSON": (
        '{"methods": [{"method": "soft_thinking", "top_p": NaN}]}', "methods[0].top_p", "nan", ""),
    "deep JSON": ('{"a": ' + "[" * 30_000, "spec", "recursion", "a JSON object"),
    "long JSON": ('{"a": "' + "x" * 70_000 + '"}', "spec", "70009 characters", "at most 65536"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_spec_names_field_got_and_allowed(case):
    given, field, got, allowed = WRONG[case]
    with pytest.raises(SpecError) as caught:
        parse_spec(given)
    problems = {problem.field: problem for problem in caught.value.problems}
    assert field in problems, str(caught.value)
    problem = problems[field]
    assert got in problem.got
    assert allowed in problem.allowed
    assert f"{field}: got {problem.got}; allowed: {problem.allowed}" in str(caught.value)


def test_the_table_has_more_than_its_share():
    assert len(WRONG) >= 25


def test_every_wrong_field_has_a_line():
    with pytest.raises(SpecError) as caught:
        parse_spec({"methods": [{**SOFT, "top_k": -1, "top_p": 2}], "seed": -1, "colour": "red"})
    fields = [problem.field for problem in caught.value.problems]
    assert sorted(fields) == ["colour", "methods[0].top_k", "methods[0].top_p", "seed"]
    assert len(str(caught.value).splitlines()) == 4


def test_a_spec_error_is_a_value_error():
    assert issubclass(SpecError, ValueError)


def test_the_model_itself_refuses_what_parse_spec_refuses():
    with pytest.raises(ValidationError, match="top1 alone"):
        DecodingSpec.model_validate(methods("top1"))


def test_a_good_spec_raises_nothing():
    assert parse_spec(soft(top_k=64)).methods[0].top_k == 64


def _file(folder, name, text):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


# (name, content, field, got, allowed)
WRONG_FILES = {
    "suffix": ("spec.toml", "", "file", "spec.toml", ".yaml, .yml or .json"),
    "no suffix": ("spec", "", "file", "spec", ".yaml"),
    "too large": ("s.yaml", "#" * 70_000, "file", "70000 bytes", "at most 65536"),
    "broken YAML": ("s.yaml", "seed: [1", "file", "line 1, column 7", "YAML"),
    "broken JSON": ("s.json", '{"seed": 1,}', "spec", "line 1", "a JSON object"),
    "YAML list": ("s.yaml", "- 1\n- 2\n", "spec", "[1, 2]", "a mapping"),
    "YAML text": ("s.yml", "qwen3-soft", "file", "'qwen3-soft'", "a mapping"),
    "YAML number": ("s.yml", "3", "spec", "3", "a mapping"),
    "empty YAML": ("s.yaml", "", "spec", "None", "a mapping"),
    "JSON list": ("s.json", "[1]", "spec", "[1]", "a mapping"),
    "deep YAML": ("s.yaml", "seed: " + "[" * 500 + "]" * 500, "file", "recursion", "YAML"),
    "deep JSON": ("s.json", "[" * 30_000, "spec", "recursion", "a JSON object"),
    "not UTF-8": ("s.yaml", b"seed: \xff\xfe", "file", "utf-8", "UTF-8"),
    "impossible date": ("s.yaml", "seed: 2026-13-45", "file", "month", "YAML"),
    "wrong tag": ("s.yaml", "seed: !!timestamp foo", "file", "", "YAML"),
    "wrong bool": ("s.yaml", "seed: !!bool foo", "file", "foo", "YAML"),
    "endless minutes": ("s.yaml", "seed: 1" + ":59" * 900 + ".5", "file", "too large", "YAML"),
    "no character": ("s.yaml", 'seed: "\\UFFFFFFFF"', "file", "too large", "YAML"),
    "a list as a mapping": ("s.yaml", "!!map [seed]", "file", "", "YAML"),
    "python object": (
        "s.yaml", "seed: !!python/object/apply:os.getcwd []", "file", "python", "YAML"),
    "endless number": ("s.yaml", "seed: " + "1" * 5000, "file", "integer string", "YAML"),
    "YAML key twice": ("s.yaml", "seed: 1\nseed: 2", "file", "the key seed a second time", "YAML"),
    "JSON key twice": (
        "s.json", '{"trace": {"level": "off", "level": "full"}}', "spec", "the key level a second",
        "a JSON object"),
    "negative seed": ("s.yaml", "seed: -1", "seed", "-1", "at least 0"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_FILES)
def test_a_wrong_file_names_field_got_and_allowed(case, tmp_path):
    name, content, field, got, allowed = WRONG_FILES[case]
    limit = sys.getrecursionlimit()
    # Compilers that other tests have called leave a higher one behind.
    sys.setrecursionlimit(1000)
    try:
        with pytest.raises(SpecError) as caught:
            load_spec(_file(tmp_path, name, content))
    finally:
        sys.setrecursionlimit(limit)
    (problem,) = caught.value.problems
    assert problem.field == field
    assert got in problem.got
    assert allowed in problem.allowed


@pytest.mark.parametrize("name", ["s.yaml", "s.json"])
def test_a_file_may_begin_with_a_byte_order_mark(name, tmp_path):
    assert load_spec(_file(tmp_path, name, b'\xef\xbb\xbf{"seed": 3}')).seed == 3


@pytest.mark.parametrize("key", [-1, -7, 3, 2.5, None, ("a",)])
@pytest.mark.parametrize("place", ["spec", "trace", "phase", "method", "below"])
def test_a_key_that_is_no_text(key, place):
    wrong = {key: 1}
    body = {
        "spec": wrong,
        "trace": {"trace": wrong},
        "phase": {"phase": wrong},
        "method": {"methods": [{"method": "soft_thinking", **wrong}]},
        "below": {"methods": [{"method": "soft_thinking", "cold_stop": wrong}]},
    }[place]
    with pytest.raises(SpecError, match=r"the key .*; allowed: a text as a field's name"):
        parse_spec(body)


def test_a_missing_file_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_spec(tmp_path / "none.yaml")


def test_aliases_cannot_make_an_error_endless(tmp_path):
    lines = ["seed: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    # Ten to the twelfth elements if anyone wrote them out.
    for n in range(1, 12):
        lines.append(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]")
    lines.append("phase: *a11")
    with pytest.raises(SpecError) as caught:
        load_spec(_file(tmp_path, "s.yaml", "\n".join(lines)))
    assert len(str(caught.value)) < 5000


def test_a_wrong_value_is_cut():
    with pytest.raises(SpecError) as caught:
        parse_spec({"seed": "x" * 10_000})
    assert len(caught.value.problems[0].got) <= 80


@pytest.mark.parametrize("case", ["seed below 0", "top_k as text", "top1 alone"])
def test_json_text_gives_the_same_error_as_the_mapping(case):
    given = WRONG[case][0]
    with pytest.raises(SpecError) as of_mapping:
        parse_spec(given)
    with pytest.raises(SpecError) as of_text:
        parse_spec(json.dumps(given))
    assert str(of_mapping.value) == str(of_text.value)


@pytest.mark.parametrize("name", ["cyclic_reflex", "tip", "nowait", "s1", "edt"])
def test_a_schedule_needs_think_markers(name):
    class NoMarkers:
        def encode(self, text, *, add_special_tokens=False):
            return [ord(c) for c in text]

        def decode(self, ids, **kwargs):
            return "".join(map(chr, ids))

    with pytest.raises(SpecError) as caught:
        bind(parse_spec(one(name)), tokenizer=NoMarkers(), vocab_size=200)
    (problem,) = caught.value.problems
    assert problem.field == "phase.think_start"
    assert "the marker that this model writes" in problem.allowed
