"""``routed_generate_kwargs``: routing as a drop-in for ``generate()`` of the large model."""

import math
import sys
from pathlib import Path

import pytest
import torch
from transformers import TextIteratorStreamer

from tokenlens.hf import UnsupportedError, routed_generate_kwargs

sys.path.insert(0, str(Path(__file__).parents[1] / "routing"))

from routing_support import alone, model, prompts, tokenizer  # after the path


def policy(threshold):
    return {
        "policy": {"policy": "glimprouter", "threshold": threshold},
        "duplicate_guard": False,
    }


def batch(count):
    """Left-padded rows of different lengths."""
    chosen = prompts(8)[:count]
    longest = max(map(len, chosen))
    ids = torch.tensor([[0] * (longest - len(row)) + list(row) for row in chosen])
    mask = torch.tensor([[0] * (longest - len(r)) + [1] * len(r) for r in chosen])
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize(("threshold", "role"), [(math.inf, "small"), (-math.inf, "large")])
def test_one_model_alone_token_for_token(threshold, role):
    kwargs = routed_generate_kwargs(model("small"), tokenizer(), policy(threshold))
    inputs = batch(3)
    output = model("large").generate(**inputs, **kwargs, do_sample=False, max_new_tokens=100)
    width = inputs["input_ids"].shape[1]
    assert output[:, :width].tolist() == inputs["input_ids"].tolist()
    for row, ids in zip(output[:, width:].tolist(), prompts(8)):
        expected = alone(role, ids, 100)
        assert row[: len(expected)] == expected
    assert [t.large_step_share for t in kwargs["custom_generate"].traces] == [
        float(role == "large")
    ] * 3


class Processor:
    """As AutoProcessor gives it."""

    tokenizer = property(lambda self: tokenizer())


@pytest.mark.parametrize("ends", [-1, (2, 0), [2, -1]])
def test_a_processor_and_ends_of_text_in_any_form(ends):
    settings = {"do_sample": False, "max_new_tokens": 12, "eos_token_id": ends}
    found = []
    for given in (tokenizer(), Processor()):
        kwargs = routed_generate_kwargs(model("small"), given, policy(0.4))
        found.append(model("large").generate(**batch(1), **kwargs, **settings).tolist())
    assert found[0] == found[1]


def test_the_streamer_comes_through_the_factory_and_is_ended():
    streamer = TextIteratorStreamer(tokenizer(), skip_prompt=True, timeout=60)
    kwargs = routed_generate_kwargs(model("small"), tokenizer(), policy(0.4), streamer=streamer)
    output = model("large").generate(**batch(1), **kwargs, do_sample=False, max_new_tokens=40)
    text = tokenizer().decode(output[0, batch(1)["input_ids"].shape[1] :])
    assert "".join(streamer) == text


def test_sampling_is_torchs_seed():
    kwargs = routed_generate_kwargs(model("small"), tokenizer(), policy(0.4))
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        settings = {"do_sample": True, "temperature": 1.5, "max_new_tokens": 60, "top_k": 0}
        found.append(model("large").generate(**batch(2), **kwargs, **settings).tolist())
    assert found[0] == found[1] != found[2]


def test_what_two_models_cannot_share_is_refused():
    kwargs = routed_generate_kwargs(model("small"), tokenizer())
    with pytest.raises(UnsupportedError, match="logits_processor"):
        model("large").generate(
            **batch(1), **kwargs, do_sample=False, repetition_penalty=1.3, max_new_tokens=4
        )
