"""Markers are found from the model: by every way, on real templates, and never a wrong one."""

import itertools

import pytest
from built_tokenizers import byte_level
from marker_table import BEGIN, END, PAGE, family_rows, family_table, tables, template_rows
from real_vocabularies import load

from tokenlens import SpecError, parse_spec
from tokenlens.spec.families import FAMILIES, family_of_model
from tokenlens.spec.finding import EngineMarkers, _literal, find_markers
from tokenlens.spec.resolution import resolve_phase

PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
THINKS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.reasoning_content %}"
    "OPEN{{ m.reasoning_content }}CLOSE{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def made(*added, template=None):
    tokenizer = byte_level(added=added)
    tokenizer.chat_template = template
    return tokenizer


def test_the_page_has_the_table():
    assert len(FAMILIES) >= 38
    page = PAGE.read_text(encoding="utf-8")
    assert page.partition(BEGIN)[2].strip().startswith(family_table())
    assert all(found is not None for _, _, found in family_rows())


def test_the_page_has_what_real_templates_give():
    page = PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    assert page.strip() == tables()
    # None that thinks is missed, and none of those that do not is taken for one that does.
    silent = {name for name, _, found in template_rows() if found is None}
    thinks = ("qwen3", "gptoss", "gemma4", "glm4", "nemotron", "deepseek", "lfm2_2_5", "muse")
    assert not [name for name in silent if name.startswith(thinks)]
    assert {"llama3", "phi3", "qwen2_5", "smolvlm"} <= silent


@pytest.mark.parametrize("name", ["llama3_1", "gemma3", "smollm2", "deepseek_v3"])
def test_a_real_model_that_does_not_think_has_none(name):
    assert find_markers(load(name)) is None


def test_real_models_that_think():
    found = find_markers(load("qwen3"))
    assert found == (("<think>",), ("</think>",), ("<tool_call>",), "chat_template")
    found = find_markers(load("gptoss"))
    assert found[:2] == (("<|channel|>analysis<|message|>",), ("<|end|>",))
    assert found.by == "vocabulary"


@pytest.mark.parametrize("gap", ["", "\n", "\n\n"])
@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize(
    ("start", "end"), [("<think>", "</think>"), ("[T]", "[/T]"), ("<|go|>", "<|stop|>")]
)
def test_a_template_is_rendered_whatever_blanks_it_writes(start, end, whole, gap):
    template = THINKS.replace("OPEN", start + gap).replace("CLOSE", gap + end + gap)
    tokenizer = made(
        "<|im_start|>", "<|im_end|>", *((start, end) if whole else ()), template=template
    )
    found = find_markers(tokenizer)
    assert (found.starts, found.ends, found.by) == ((start,), (end,), "chat_template")


@pytest.mark.parametrize(
    "template",
    [PLAIN, "{{ raise_exception('no') }}", "{% for x in range(10**9) %}x{% endfor %}", "{{ 1", "x"],
)
def test_a_template_that_says_nothing_costs_nothing(template):
    assert find_markers(made(template=template)) is None


def test_the_ways_come_in_their_order():
    tokenizer = made("<a>", "</a>", "[THINK]", "[/THINK]", "<seed:think>", "</seed:think>")
    tokenizer.name_or_path = "ByteDance/Seed-OSS-36B"
    assert find_markers(tokenizer).by == "family"
    tokenizer = made("<a>", "</a>", "[THINK]", "[/THINK]")
    assert find_markers(tokenizer)[:2] == (("[THINK]",), ("[/THINK]",))
    assert find_markers(tokenizer).by == "vocabulary"
    tokenizer.chat_template = THINKS.replace("OPEN", "<a>").replace("CLOSE", "</a>")
    assert find_markers(tokenizer).by == "chat_template"
    field = {"open": "<x>", "close_pattern": r"<\/x>\s*", "content": "text"}
    tokenizer.response_template = {"fields": {"thinking": field}}
    assert find_markers(tokenizer) == (("<x>",), ("</x>",), (), "response_template")
    found = find_markers(tokenizer, EngineMarkers("any", "<y>", "</y>", "<call>"))
    assert found[:2] == (("<y>",), ("</y>",))
    assert found.by == "engine"


def test_an_engine_s_parser_without_texts_is_a_family():
    found = find_markers(made(), EngineMarkers("granite"))
    assert found.starts == FAMILIES["granite-3.2"].starts
    assert found.by == "engine"
    assert find_markers(made(), EngineMarkers("nobody's")) is None


def test_a_bare_channel_gets_its_name():
    tokenizer = made("<|channel>", "<channel|>")
    found = find_markers(tokenizer, EngineMarkers("gemma4", "<|channel>", "<channel|>"))
    assert found.starts == ("<|channel>thought\n",)


@pytest.mark.parametrize(
    ("pattern", "text"),
    [(r"</think>\s*", "</think>"), (r"<\|end\|>\s*|$", "<|end|>"), (r"(?=a)", ""), (r"a+", "")],
)
def test_only_a_plain_pattern_is_a_text(pattern, text):
    assert _literal(pattern) == text


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("Qwen/Qwen3-8B", "qwen3"),
        ("Qwen/Qwen3.5-4B", "qwen3.5"),
        ("deepseek-ai/DeepSeek-R1-Distill-Llama-8B", "r1-llama"),
        ("moonshotai/Kimi-K2-Thinking", "kimi"),
        ("somebody/llama", None),
    ],
)
def test_a_model_s_name_says_its_family(name, family):
    assert family_of_model(name) is (FAMILIES[family] if family else None)


def phase_of(phase, tokenizer, **more):
    return resolve_phase(parse_spec({"phase": phase}).phase, tokenizer, **more)


def test_what_is_given_stays_and_the_rest_is_found():
    tokenizer = made("<think>", "</think>", "<tool_call>")
    found = phase_of("auto", tokenizer)
    assert (found.think_start, found.think_end) == ("<think>", "</think>")
    assert (found.tool_start, found.found) == ("<tool_call>", "vocabulary")
    assert resolve_phase(found, tokenizer) == found
    found = phase_of({"think_end": ["</think>", "so:"]}, tokenizer)
    assert (found.think_start, found.think_end) == ("<think>", ("</think>", "so:"))
    assert phase_of({"think_start": [1], "think_end": [2]}, made()).found is None
    assert phase_of("step3", made()).opens == "first_token"


@pytest.mark.parametrize("own", ["[THINK]", "<seed:think>", "<|START_THINKING|>"])
@pytest.mark.parametrize("field", ["think_start", "think_end"])
def test_a_spelled_marker_is_an_error_where_the_model_has_its_own(own, field):
    end = {"[THINK]": "[/THINK]", "<seed:think>": "</seed:think>"}.get(own, "<|END_THINKING|>")
    tokenizer = made(own, end)
    foreign = {"think_start": "<think>", "think_end": "</think>"}[field]
    mine = own if field == "think_start" else end
    with pytest.raises(SpecError, match=rf"phase\.{field}: got '{foreign}'") as caught:
        phase_of({field: foreign}, tokenizer)
    assert mine in str(caught.value)
    # The guard is what says it.
    assert getattr(phase_of({field: foreign}, tokenizer, strict=False), field) == foreign
    # More around the model's own is right.
    phase_of({field: f"{mine}\n"}, tokenizer)


@pytest.mark.parametrize("family", [n for n, f in FAMILIES.items() if f.written != "text"])
def test_a_family_is_an_error_where_the_tokenizer_lacks_it(family):
    with pytest.raises(SpecError, match=rf"phase\.markers: got '{family}'"):
        phase_of(family, made("<other>"))


def test_no_phase_is_written_that_cannot_be_read():
    phases = ["auto", "none", *FAMILIES, {"markers": "none", "end_after": 3, "think_end": "x"}]
    for phase, counted in itertools.product(phases, ("whole", "block")):
        given = {"markers": phase} if isinstance(phase, str) else phase
        spec = parse_spec({"phase": {**given, "counted": counted}})
        assert parse_spec(spec.model_dump_json()) == spec
