"""The reasoners that ship with the package, with their real tokenizer and chat template."""

from importlib.resources import files

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tokenlens.hf import generate_kwargs, traces
from tokenlens.spec import AnswerNow, TraceConfig, parse_spec

ASSETS = files("tokenlens") / "assets"
NAMES = sorted(folder.name for folder in ASSETS.iterdir() if (folder / "config.json").is_file())

pytestmark = pytest.mark.skipif(not NAMES, reason="no model is in tokenlens/assets")


@pytest.fixture(scope="module", params=NAMES)
def reasoner(request):
    folder = str(ASSETS / request.param)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(folder, padding_side="left")


def ask(tokenizer, *questions, **template):
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": question}],
            tokenize=False,
            add_generation_prompt=True,
            **template,
        )
        for question in questions
    ]
    return tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)


QUESTIONS = ("make 16 using 3,5,8", "make 24 using 3,5,7,2")


def phases(trace):
    """The phases in the order in which they came."""
    names = [step.phase for step in trace.steps]
    return [name for i, name in enumerate(names) if i == 0 or name != names[i - 1]]


def full(preset, **more):
    return {"preset": preset, "trace": {"level": "full"}, **more}


def test_soft_thinking_goes_from_prompt_to_answer(reasoner):
    model, tokenizer = reasoner
    inputs = ask(tokenizer, *QUESTIONS)
    end = tokenizer.convert_tokens_to_ids("</think>")
    soft = parse_spec("tiny-soft")
    # A model that does not find its own end in time is told to.
    spec = soft.model_copy(
        update={
            "methods": (*soft.methods, AnswerNow(after=60)),
            "trace": TraceConfig(level="full"),
        }
    )
    kwargs = generate_kwargs(model, tokenizer, spec)
    model.generate(**inputs, **kwargs, max_new_tokens=80, do_sample=False)
    for trace in traces(kwargs):
        assert phases(trace) == ["prompt", "thinking", "answer"]
        assert trace.final_phase == "answer"
        thinking = [step for step in trace.steps if step.phase == "thinking"]
        # The marker that opens thinking is the model's own token; from the next on it is mixtures.
        assert [step.latent for step in thinking] == [step.token != end for step in thinking]
        assert thinking[-1].token == end
        assert not any(step.latent for step in trace.steps if step.phase != "thinking")
        assert any(len(step.entries) > 1 for step in thinking)


def test_preset_by_name(reasoner):
    model, tokenizer = reasoner
    inputs = ask(tokenizer, QUESTIONS[0])
    kwargs = generate_kwargs(model, tokenizer, "tiny-soft")
    model.generate(**inputs, **kwargs, max_new_tokens=30, do_sample=False)
    assert traces(kwargs)[0].counts.latent_steps > 10


def test_soft_off_is_plain(reasoner):
    model, tokenizer = reasoner
    inputs = ask(tokenizer, *QUESTIONS)
    settings = {"max_new_tokens": 60, "do_sample": False}
    plain = model.generate(**inputs, **settings)
    for spec in ({}, full("tiny-top1")):
        # top1 feeds the top token of the same distribution: greedy decoding by another name.
        output = model.generate(**inputs, **settings, **generate_kwargs(model, tokenizer, spec))
        assert torch.equal(output, plain)


def test_thinking_that_the_template_has_switched_off(reasoner):
    model, tokenizer = reasoner
    inputs = ask(tokenizer, QUESTIONS[0], enable_thinking=False)
    settings = {"max_new_tokens": 20, "do_sample": False}
    kwargs = generate_kwargs(model, tokenizer, full("tiny-soft"))
    output = model.generate(**inputs, **settings, **kwargs)
    assert phases(traces(kwargs)[0]) == ["answer"]
    assert torch.equal(output, model.generate(**inputs, **settings))


def test_no_thinking_closes_what_the_model_opens(reasoner):
    model, tokenizer = reasoner
    inputs = ask(tokenizer, QUESTIONS[0])
    kwargs = generate_kwargs(model, tokenizer, full("tiny-no-thinking"))
    model.generate(**inputs, **kwargs, max_new_tokens=30, do_sample=False)
    trace = traces(kwargs)[0]
    assert trace.counts.thinking_tokens == 1
    assert phases(trace) == ["prompt", "thinking", "answer"]
