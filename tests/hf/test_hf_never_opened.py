"""A preset on any model: thinks latently where it thinks, and says so where nothing opened."""

import copy
import warnings

import pytest
import torch
from built_tokenizers import WORDS, byte_level, word_piece
from transformers import LlamaConfig, LlamaForCausalLM

from tokenlens import SpecError
from tokenlens.hf import generate_kwargs, traces

FAMILIES = {
    "qwen": ("<think>", "</think>"),
    "mistral": ("[THINK]", "[/THINK]"),
    "gemma4": ("<|channel>", "<channel|>"),
    "seed": ("<seed:think>", "</seed:think>"),
}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def generate(model, tokenizer, spec, text):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        kwargs = generate_kwargs(model, tokenizer, spec)
        inputs = tokenizer(text, return_tensors="pt")
        inputs.pop("token_type_ids", None)  # of tokenizers before transformers 5
        model.generate(**inputs, **kwargs, max_new_tokens=5, do_sample=False, pad_token_id=0)
        (trace,) = traces(kwargs)
    return trace, [str(one.message) for one in caught if "never opened" in str(one.message)]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_preset_thinks_on_every_family_and_says_where_nothing_opened(model, family):
    model = copy.deepcopy(model)
    start, end = FAMILIES[family]
    tokenizer = byte_level((*WORDS, "thought"), added=(start, end))
    opened = f"q{start}thought\n" if family == "gemma4" else f"q{start}"
    trace, said = generate(model, tokenizer, "soft", opened)
    assert trace.counts.latent_steps == 5
    assert not trace.never_opened
    assert said == []
    assert trace.spec.phase.found == "vocabulary"
    for _ in range(2):
        trace, more = generate(model, tokenizer, "soft", "q")
        said += more
        assert trace.never_opened
        assert trace.counts.latent_steps == 0
    # Once a model
    assert len(said) == 1
    assert "soft_thinking" in said[0]
    assert repr(end) in said[0]


def test_what_does_not_act_in_thinking_is_not_told(model):
    tokenizer = byte_level()
    for methods in ([], [{"method": "min_p"}], [{"method": "no_thinking"}]):
        trace, said = generate(copy.deepcopy(model), tokenizer, {"methods": methods}, "q")
        assert not trace.never_opened
        assert said == []
    trace, said = generate(
        copy.deepcopy(model), tokenizer, {"methods": [{"method": "answer_now", "after": 3}]}, "q"
    )
    assert trace.never_opened
    assert len(said) == 1


def test_a_model_without_markers_is_an_error_that_names_the_way_out(model):
    for spec in ("soft", "qwen3-soft", {"preset": "soft", "phase": "mistral"}):
        with pytest.raises(SpecError, match="phase: none"):
            generate_kwargs(model, byte_level(added=()), spec)
    # Nothing is found either where the tokenizer cannot even write what others have.
    with pytest.raises(SpecError, match=r"takes 3: \['\[UNK\]'.* phase: none"):
        generate_kwargs(model, word_piece(), "soft")
    trace, said = generate(model, byte_level(added=()), {"preset": "soft", "phase": "none"}, "q")
    assert trace.counts.latent_steps == 5
    assert said == []
