"""Whatever is sent, an error stays short, and reading it costs what its length says."""

import json
import os
import threading

import pytest
from built_in import bind
from built_tokenizers import byte_level, size_of
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenlens import SpecError, errors, load_spec, parse_spec
from tokenlens.serving.arguments import spec_of
from tokenlens.spec import METHOD_CONFIGS, DecodingSpec, encode_text, preset
from tokenlens.spec import errors as translation
from tokenlens.spec.errors import MAX_MESSAGE, MAX_PROBLEMS, MAX_SHOWN, SpecProblem
from tokenlens.spec.load import MAX_SPEC_BYTES
from tokenlens.spec.yaml_text import load_yaml

ODD = "Ж"
"""A letter that none of our messages has."""

LONG = st.integers(1, 400).map(lambda n: ODD * n) | st.just(ODD * 50_000)
FIELDS = (
    "method methods preset phase trace seed think_start think_end level words exclude text tokens"
    " gate first cold_stop max_topk"
)
NAMES = st.sampled_from([*METHOD_CONFIGS, *FIELDS.split()])
LEAVES = (
    LONG
    | NAMES
    | st.booleans()
    | st.none()
    | st.integers()
    | st.floats()
    | st.just(5000).map(lambda n: 10**n)
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES | LONG, inner, max_size=4),
    max_leaves=12,
)
METHOD = st.dictionaries(NAMES | LONG, VALUES, max_size=3).flatmap(
    lambda body: (LONG | NAMES).map(lambda name: {"method": name, **body})
)
BODIES = st.dictionaries(NAMES | LONG, VALUES, max_size=4) | st.fixed_dictionaries(
    {"methods": st.lists(METHOD | VALUES, max_size=3)}, optional={"phase": VALUES, "trace": VALUES}
)


def message_of(call, *args):
    try:
        call(*args)
    except SpecError as error:
        return error
    return None


def held(error, letter=ODD):
    if error is None:
        return
    text = str(error)
    assert len(text) <= MAX_MESSAGE
    assert len(error.problems) <= MAX_PROBLEMS
    for problem in error.problems:
        # In the name and in the value together: what is allowed repeats a hint at most.
        assert problem.field.count(letter) + problem.got.count(letter) <= 2 * MAX_SHOWN
        assert problem.allowed.count(letter) <= MAX_SHOWN
        assert str(problem).isprintable()


@given(body=BODIES)
@settings(max_examples=250, deadline=None)
def test_no_body_gets_a_long_answer(body):
    held(message_of(parse_spec, body))
    held(message_of(spec_of, {"tokenlens": body}))


@given(keys=st.dictionaries(LONG | NAMES, VALUES, min_size=1, max_size=4))
@settings(max_examples=150, deadline=None)
def test_no_flat_field_gets_a_long_answer(keys):
    held(message_of(spec_of, {f"tokenlens_{key}": value for key, value in keys.items()}))
    dotted = {f"tokenlens_tip.{key}.{key}": value for key, value in keys.items()}
    held(message_of(spec_of, dotted))
    held(message_of(spec_of, {"tokenlens": "qwen3-soft", **dotted}))


@pytest.mark.parametrize(
    ("body", "most"),
    [
        ({"methods": [{"method": ODD * 50_000}]}, MAX_SHOWN),
        ({"methods": [{"method": "tip", "words": [ODD * 40] * 64}]}, MAX_PROBLEMS * MAX_SHOWN),
        ({f"{ODD * 9}{n}": 1 for n in range(3000)}, 2 * MAX_PROBLEMS * 9),
        ({ODD * 50_000: 1}, MAX_SHOWN),
        ({"preset": ODD * 50_000}, MAX_SHOWN),
        ({"phase": {"think_start": ODD * 50_000}}, MAX_SHOWN),
        ({"phase": {"think_start": [ODD * 999]}}, 2 * MAX_SHOWN),
        (ODD * 50_000, MAX_SHOWN),
        (json.dumps({ODD * 9000: 1}), MAX_SHOWN),
        (f'{{"{ODD * 9000}": 1, "{ODD * 9000}": 2}}', MAX_SHOWN),
    ],
    ids=lambda value: None if isinstance(value, int) else str(value)[:20].replace(ODD, "x"),
)  # fmt: skip
def test_at_most_80_characters_of_what_was_sent(body, most):
    error = message_of(parse_spec, body)
    assert 0 < str(error).count(ODD) <= most
    held(error)


def test_many_problems_are_counted():
    error = message_of(parse_spec, {f"field{n}": 1 for n in range(3000)})
    assert str(error).splitlines()[-1] == f"and {3000 - MAX_PROBLEMS} more"
    assert len(error.problems) == MAX_PROBLEMS


def test_the_bounds_are_what_keeps_it_short(monkeypatch):
    for name in ("MAX_SHOWN", "MAX_FIELD", "MAX_ALLOWED", "MAX_PROBLEMS", "MAX_MESSAGE"):
        monkeypatch.setattr(errors, name, 10**9)
        if hasattr(translation, name):
            monkeypatch.setattr(translation, name, 10**9)
    monkeypatch.setattr(SpecProblem, "__post_init__", lambda self: None)
    error = message_of(parse_spec, {f"{ODD * 10}{n}": 1 for n in range(2000)})
    assert len(str(error)) > 100_000


def test_words_and_markers_of_a_tokenizer_stay_short():
    tokenizer = byte_level()
    words = [ODD * 30 + str(n) for n in range(60)]
    for methods, phase in (
        ([{"method": "tip", "words": [*words, "wait"]}], {}),
        ([{"method": "nowait", "words": words}], {}),
        ([{"method": "cyclic_reflex", "words": words, "quirks": {"unknown_words": "skip"}}], {}),
        ([{"method": "nowait"}], {"think_start": ODD * 60}),
        ([{"method": "no_thinking", "text": ODD * 250}], {}),
    ):
        phase = {"think_start": "<think>", "think_end": "</think>", **phase}
        spec = parse_spec({"methods": methods, "phase": phase})
        error = message_of(
            lambda spec=spec: bind(spec, tokenizer=tokenizer, vocab_size=size_of(tokenizer))
        )
        assert error is not None
        held(error)

    class Stammers:
        def encode(self, text, **_):
            return [1]

        def decode(self, ids, **_):
            return ODD * 50_000

    held(message_of(encode_text, Stammers(), "x", "phase.think_start"))


def test_a_schema_is_made_once_however_many_errors(monkeypatch):
    made = []
    real = DecodingSpec.model_json_schema
    monkeypatch.setattr(
        DecodingSpec, "model_json_schema", classmethod(lambda cls: made.append(1) or real())
    )
    translation._schema_of.cache_clear()
    for n in range(5):
        message_of(parse_spec, {f"x{n}": 1})
    assert made == [1]


@pytest.mark.parametrize(
    ("phase", "tokenizer"),
    [
        ({"think_start": "<x>", "think_end": "<x>"}, None),
        ({"think_start": [5, 6], "think_end": [5, 6]}, None),
        ({"think_start": "</think>"}, None),
        ({"think_end": "<think>"}, None),
        ({"think_end": "\n<think>\n"}, None),
        ({"think_start": " <x>", "think_end": "<x>"}, None),
        ({"think_start": "<think>", "think_end": "ids"}, byte_level),
    ],
)
def test_a_marker_that_begins_and_ends_thinking_is_refused(phase, tokenizer):
    if tokenizer is None:
        with pytest.raises(SpecError, match=r"phase.*think_start and as think_end.*two markers"):
            parse_spec({"phase": phase})
        return
    made = tokenizer()
    ids = made.encode(phase["think_start"], add_special_tokens=False)
    spec = parse_spec(
        {"methods": [{"method": "no_thinking"}], "phase": {**phase, "think_end": ids}}
    )
    with pytest.raises(SpecError, match=r"phase.*two markers"):
        bind(spec, tokenizer=made, vocab_size=size_of(made))


def test_a_spec_beside_a_preset_is_refused():
    for whole in ("qwen3-soft", {"seed": 3}, '{"seed": 3}', preset("tiny-soft")):
        with pytest.raises(SpecError, match="tokenlens_preset: got 'qwen3-soft'; allowed: nothing"):
            spec_of({"tokenlens": whole, "tokenlens_preset": "qwen3-soft"})


def large():
    words = [f"{n:032}" for n in range(64)]
    return {"methods": [{"method": "nowait", "words": words, "quirks": {"exclude": words}}] * 16}


def deep(levels):
    value = "x"
    for _ in range(levels):
        value = [value]
    return {"methods": value}


def test_a_mapping_has_the_bounds_of_a_text():
    for body in (
        {"seed": "x" * (MAX_SPEC_BYTES + 1)},
        {"x" * (MAX_SPEC_BYTES + 1): 1},
        {"methods": [0] * MAX_SPEC_BYTES},
        {f"{n:050}": 1 for n in range(2000)},
        {"seed": 1 << (8 * MAX_SPEC_BYTES)},
        large(),
        deep(17),
        deep(500),
    ):
        with pytest.raises(SpecError, match=r"spec: got a (larger|deeper) one"):
            parse_spec(body)
    shared = ["x"]
    for _ in range(14):
        shared = [shared] * 12
    with pytest.raises(SpecError, match="larger"):
        parse_spec({"methods": shared})
    endless = []
    endless.append(endless)
    with pytest.raises(SpecError, match="deeper"):
        parse_spec({"methods": endless})
    # 16 methods with all that each may have are far from the bound.
    methods = [METHOD_CONFIGS[name].model_json_schema() for name in ("soft_thinking", "lead")]
    assert len(json.dumps(methods)) > 3000
    parse_spec(preset("qwen3-soft-published").model_dump())


def test_a_text_is_measured_in_bytes():
    with pytest.raises(SpecError, match=r"spec: got '92\d+ bytes'; allowed: at most 65536"):
        parse_spec('{"seed": 1, "x": "' + "é" * 46_000 + '"}')


MERGES = "a0: &a0 {x: 1, y: 2}\n" + "".join(
    f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 30)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (MERGES, "keys by merging"),
        ("a: &a {x: 1}\nb: {<<: [" + "*a, " * 9000 + "*a]}\n", "keys by merging"),
        ("a: &a {<<: *a}\n", ""),
        ("a: &a {b: &b {<<: *a}}\n", ""),
        ("- &a [x]\n" + "".join(f"- &b{n} [*a, *a]\n" for n in range(3)), "mapping"),
    ],
)
def test_merge_keys_end(tmp_path, text, said):
    path = tmp_path / "spec.yaml"
    path.write_text(text)
    with pytest.raises(SpecError, match=f"(?s){said}"):
        load_spec(path)


def test_merge_keys_work(tmp_path):
    path = tmp_path / "spec.yaml"
    path.write_text("trace: &t {level: full}\nphase: {}\n")
    assert load_spec(path).trace.level == "full"
    assert load_yaml("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\n")["b"] == {"x": 1, "y": 3}


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    path = tmp_path / "spec.json"
    os.mkfifo(path)
    done = []
    thread = threading.Thread(target=lambda: done.append(message_of(load_spec, path)), daemon=True)
    thread.start()
    thread.join(timeout=60)
    assert "regular file" in str(done[0])


@pytest.mark.parametrize("target", ["/dev/zero", "/dev/null", "/proc/self/mem"])
def test_a_link_to_a_device_is_refused(tmp_path, target):
    path = tmp_path / "spec.yaml"
    path.symlink_to(target)
    with pytest.raises((SpecError, OSError)):
        load_spec(path)


def test_a_file_that_says_it_is_empty_is_read_within_bounds(tmp_path):
    path = tmp_path / "spec.yaml"
    # Sizes in /proc are 0, whatever is in the file.
    path.symlink_to("/proc/kallsyms")
    with pytest.raises((SpecError, PermissionError)):
        load_spec(path)
    large_file = tmp_path / "large.json"
    large_file.write_text(" " * (MAX_SPEC_BYTES + 1))
    with pytest.raises(
        SpecError, match=f"file: got '65537 bytes'; allowed: at most {MAX_SPEC_BYTES}"
    ):
        load_spec(large_file)


def test_a_method_s_name_of_5000_digits_is_refused():
    # Else pydantic would write it, and fail inside of its error.
    error = message_of(parse_spec, {"methods": [{"method": 10**5000}]})
    assert error.problems[0].field == "methods[0].method"
