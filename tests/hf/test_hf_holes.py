"""A tokenizer with holes in its ids: what it has is used, what it does not have is not."""

import pytest
import torch
from built_tokenizers import byte_level, size_of
from transformers import LlamaConfig, LlamaForCausalLM

from tokenlens import SpecError
from tokenlens.hf import generate_kwargs, traces
from tokenlens.serving.binding import Binder
from tokenlens.spec import parse_spec

WIDTH = 1000
PHASE = {"think_start": "<think>", "think_end": "</think>"}
SOFT = {
    "methods": [{"method": "soft_thinking", "top_k": 4, "max_entries": 4, "top_p": 1.0}],
    "phase": PHASE,
    "trace": {"level": "full"},
}


@pytest.fixture(scope="module")
def tokenizer():
    """Some 290 tokens, eight of which stand above 700."""
    return byte_level(holes=(3, 70), gap=450)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=WIDTH, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


class Raise(torch.nn.Module):
    """The model's head, with some ids raised above all others."""

    def __init__(self, head, *raised):
        super().__init__()
        self.head, self.raised = head, raised

    def forward(self, hidden):
        logits = self.head(hidden)
        for ids, value in self.raised:
            logits[..., list(ids)] = value
        return logits


def thought(model, tokenizer, *raised):
    """The entries of every concept token of a short thought."""
    head = model.lm_head
    prompt = torch.tensor([tokenizer.encode("<think>", add_special_tokens=False)])
    kwargs = generate_kwargs(model, tokenizer, SOFT)
    model.lm_head = Raise(head, *raised)
    try:
        model.generate(prompt, max_new_tokens=4, do_sample=False, **kwargs)
    finally:
        model.lm_head = head
    steps = traces(kwargs)[0].steps
    return [i for step in steps if step.latent for i, w in step.entries if w > 0]


def test_tokens_above_the_count_of_tokens_are_thought_of(model, tokenizer):
    high = [i for i in sorted(tokenizer.get_vocab().values()) if i >= len(tokenizer)]
    assert len(high) == 8
    assert set(thought(model, tokenizer, (high[:4], 30.0))) == set(high[:4])


def test_ids_without_a_token_are_not(model, tokenizer):
    tokens = sorted(tokenizer.get_vocab().values())
    missing = sorted(set(range(WIDTH)) - set(tokens))
    assert {3, 70, 999} < set(missing)
    used = thought(model, tokenizer, (missing, 40.0), (tokens[200:204], 30.0))
    assert set(used) == set(tokens[200:204])


def test_markers_and_words_above_the_count_are_found(tokenizer):
    binder = Binder(tokenizer, WIDTH)
    assert binder.vocab_size == size_of(tokenizer) > len(tokenizer)
    assert set(binder.holes) == set(range(binder.vocab_size)) - set(tokenizer.get_vocab().values())
    start = max(tokenizer.get_vocab().values())
    words = {"method": "nowait", "words": ["company"]}
    request = binder.bind(parse_spec({**SOFT, "methods": [words]}), ())
    (word,) = tokenizer.encode("company", add_special_tokens=False)
    assert request.found["nowait.words"] == (word,)
    by_id = parse_spec({"methods": [words], "phase": {"think_start": [start], "think_end": [5]}})
    assert binder.bind(by_id, (start,)).columns
    with pytest.raises(SpecError, match=f"below the vocabulary's {binder.vocab_size}"):
        binder.bind(by_id, (binder.vocab_size,))
