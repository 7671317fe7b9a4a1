"""Answers are looked for behind the markers that were found, and reports say how thinking went."""

import pytest
import torch
from built_tokenizers import WORDS, byte_level
from marker_table import vocabulary_of
from real_vocabularies import load
from transformers import LlamaConfig, LlamaForCausalLM

from tokenlens.core import bind
from tokenlens.evaluation import Generated, evaluate, rows
from tokenlens.evaluation.answers import answer_part, markers_of
from tokenlens.evaluation.arms import GREEDY, Arm
from tokenlens.evaluation.engine import opened, phase_of
from tokenlens.evaluation.engine_hf import HuggingFace
from tokenlens.evaluation.question import Question
from tokenlens.evaluation.report import arm_table
from tokenlens.evaluation.tasks import Task
from tokenlens.spec import DecodingSpec, parse_spec
from tokenlens.spec.families import FAMILIES
from tokenlens.trace import TraceCounts
from tokenlens.trace.finish import finish_of

AUTO = DecodingSpec()


def said(family, thought, answer):
    """What a model of a family writes: a thought, and an answer behind it."""
    text = f"{family.think_start}{thought}{family.think_end}{answer}"
    if family is FAMILIES["gpt-oss"]:
        final = "<|start|>assistant<|channel|>final<|message|>"
        text = f"{family.think_start}{thought}{family.think_end}{final}{answer}<|return|>"
    return text


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_s_answer_stands_behind_the_markers_that_auto_finds(name):
    family = FAMILIES[name]
    tokenizer = vocabulary_of(family)
    tokenizer.name_or_path = f"somebody/{family.names[0].strip('/')}" if family.names else ""
    phase = phase_of(tokenizer, AUTO)
    assert phase.found in ("vocabulary", "family"), phase
    markers = markers_of(phase, tokenizer.decode)
    inside = opened(tokenizer, "q", "q", phase)
    assert inside == (not family.starts)
    assert answer_part(said(family, "\\boxed{6}", "\\boxed{5}"), markers, inside) == "\\boxed{5}"
    unended = f"{family.think_start}\\boxed{{5}}"
    assert answer_part(unended, markers, inside) == ""
    # Somebody else's marker is text.
    other = "[/THINK]" if family.think_end != "[/THINK]" else "</think>"
    both = said(family, f"1 {other}", "2")
    assert answer_part(both, markers, inside) == "2"


@pytest.mark.parametrize(
    ("name", "text", "answer"),
    [
        ("qwen3", "<think>\nx</think>\n\n5<|im_end|>", "5"),
        (
            "gptoss",
            "<|channel|>analysis<|message|>x<|end|><|start|>assistant<|channel|>final<|message|>5"
            "<|return|>",
            "5",
        ),
        ("gptoss", "<|channel|>analysis<|message|>5<|return|>", ""),
    ],
)
def test_real_vocabularies(name, text, answer):
    tokenizer = load(name)
    phase = phase_of(tokenizer, AUTO)
    written = tokenizer.decode(tokenizer.encode(text, add_special_tokens=False))
    assert answer_part(written, markers_of(phase, tokenizer.decode)) == answer


def test_a_model_without_markers_has_its_answer_anywhere():
    none = parse_spec({"methods": [], "phase": "none"})
    phase = phase_of(load("smollm2"), none)
    assert phase.found == "none"
    markers = markers_of(phase, None)
    assert answer_part("x </think> 5", markers) == "x </think> 5"
    to_text = parse_spec({"phase": {"markers": "none", "think_end": "\nAnswer:"}}).phase
    markers = markers_of(to_text, None)
    assert answer_part("well, 6\nAnswer: 5", markers, opened=True) == "5"
    assert answer_part("well, 6", markers, opened=True) == ""


class Says:
    """An engine that gives prepared texts, of a model whose tokenizer it has."""

    name = "hf"

    def __init__(self, tokenizer, *answers):
        self.tokenizer, self.answers = tokenizer, answers

    def generate(self, prompts, specs, sampling, *, max_new_tokens, seed):
        return [
            Generated(text=text, tokens=9, finished=True, finish=finish)
            for (text, finish), _ in zip(self.answers, prompts, strict=True)
        ]

    def decode(self, ids):
        return self.tokenizer.decode(ids)

    def phase(self, spec):
        return phase_of(self.tokenizer, spec)

    def close(self):
        pass


class Literal(Says):
    """One that does not say what was found."""

    phase = None

    def __getattribute__(self, name):
        if name == "phase":
            raise AttributeError(name)
        return super().__getattribute__(name)


def same(question, text):
    return text.strip() == question.answer


def task(count):
    return Task("t", tuple(Question(str(i), "?", "5") for i in range(count)), same, 50)


ANSWERS = (
    ("<|channel>thought\n6<channel|>5", "ended"),
    ("<|channel>thought\n5<channel|>6", "budget"),
    ("<|channel>thought\n5", "never_ended"),
    ("5", "never_opened"),
)


def test_an_evaluation_asks_its_engine_for_the_markers(tmp_path):
    gemma = vocabulary_of(FAMILIES["gemma4"])
    arm = Arm(name="a", spec=AUTO)
    found = evaluate(Says(gemma, *ANSWERS), task(4), [arm], tmp_path / "a")
    assert [one.correct for one in found.records("a")] == [True, False, False, True]
    (row,) = rows(found)
    assert (row.never_opened, row.never_ended, row.cut) == (0.25, 0.25, 0.25)
    head, line = arm_table([row])
    named = dict(zip(head, line))
    assert [named[f"{name} %"] for name in ("never opened", "never ended", "cut")] == ["25.0"] * 3
    # Without what was found, the thought would be taken for the answer.
    spec = Literal(gemma, *ANSWERS)
    found = evaluate(spec, task(4), [arm], tmp_path / "b")
    assert [one.correct for one in found.records("a")] != [True, False, False, True]


def test_an_answer_of_an_earlier_version_has_no_finish(tmp_path):
    text = '{"text":"x","tokens":1,"finished":true}'
    assert Generated.model_validate_json(text).finish is None


@pytest.mark.parametrize("kind", ["gemma4", "mistral", "qwen3"])
def test_hugging_face_says_how_the_thinking_went(tmp_path, kind):
    family = FAMILIES[kind]
    tokenizer = byte_level((*WORDS, "thought"), added=(*vocabulary_of(family).get_added_vocab(),))
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    engine = HuggingFace(str(tmp_path))
    soft = {"method": "soft_thinking"}
    asked = {
        "never_ended": ([soft], f"q{family.think_start}"),
        "budget": ([soft, {"method": "answer_now", "after": 3}], f"q{family.think_start}"),
        "never_opened": ([soft], "q"),
        "no_thinking": ([], "q"),
    }
    specs = [parse_spec({"methods": methods}) for methods, _ in asked.values()]
    prompts = [prompt for _, prompt in asked.values()]
    # The thought that this prompt opens is not the user's: it stands behind an empty message.
    found = engine.generate(prompts, specs, GREEDY, max_new_tokens=8, seed=0)
    assert [one.finish for one in found] == list(asked)
    ended = found[1].text
    assert family.think_end in ended
    markers = markers_of(engine.phase(specs[1]), engine.decode)
    assert markers.start == family.think_start
    assert answer_part(ended, markers, opened=True) == answer_part(
        ended.partition(family.think_end)[2], markers
    )


def counts(tokens, thinking, latent=0, forced=0, cold=0):
    return TraceCounts(
        tokens=tokens, thinking_tokens=thinking, latent_steps=latent, forced_steps=forced,
        invalid_steps=0, cold_stops=cold,
    )  # fmt: skip


SOFT, END = {"method": "soft_thinking"}, {"method": "answer_now", "after": 5}


@pytest.mark.parametrize(
    ("methods", "phase", "found", "final", "finish"),
    [
        ([SOFT], {}, counts(9, 5, 5, 5), "answer", "ended"),
        ([SOFT], {}, counts(9, 9, 9, 9), "thinking", "never_ended"),
        ([SOFT], {}, counts(9, 0), "prompt", "never_opened"),
        ([SOFT], {}, counts(9, 0), "answer", "never_opened"),
        ([SOFT, END], {}, counts(9, 6, 5, 6), "answer", "budget"),
        ([SOFT, END], {}, counts(9, 3, 3, 3), "answer", "ended"),
        ([END], {}, counts(9, 6, 0, 1), "answer", "budget"),
        ([{"method": "swi_reasoning"}, END], {}, counts(9, 6, 5, 1), "answer", "budget"),
        ([SOFT], {}, counts(9, 5, 4, 5, 1), "answer", "cold_stop"),
        ([], {}, counts(9, 0), "prompt", "no_thinking"),
        ([], {}, counts(9, 5), "answer", "ended"),
        ([{"method": "no_thinking"}], {}, counts(9, 0, 0, 3), "answer", "no_thinking"),
        ([SOFT], "none", counts(9, 9, 9, 9), "thinking", "ended"),
        ([SOFT], {"markers": "none", "end_after": 20}, counts(9, 9, 9), "thinking", "never_ended"),
        ([SOFT, END], "none", counts(9, 9, 9, 9), "thinking", "never_ended"),
    ],
)
def test_how_a_thought_went_in_one_word(methods, phase, found, final, finish):
    spec = parse_spec({"methods": methods, "phase": phase})
    assert finish_of(spec, found, final) == finish


def test_the_markers_are_those_that_the_request_is_decoded_with():
    from tokenlens.methods.door import active

    for name in ("gemma4", "gpt-oss", "mistral", "k2-horizon", "step3"):
        added = tuple(vocabulary_of(FAMILIES[name]).get_added_vocab())
        tokenizer = byte_level((*WORDS, "thought", "analysis"), added=added)
        tokenizer.name_or_path = f"somebody/{FAMILIES[name].names[0].strip('/')}"
        spec = parse_spec({"methods": [SOFT]})
        size = len(tokenizer)
        request = bind(spec, methods=active(), tokenizer=tokenizer, vocab_size=size, strict=True)
        assert request.spec.phase == phase_of(tokenizer, spec)
