"""Controllers inside stock ``generate()``."""

import pytest
import torch
from controllers_support import steer
from routing_support import alone, model, prompts, tokenizer

from tokenlens.errors import SpecError, UnsupportedError
from tokenlens.hf import steered_generate_kwargs


def generate(policy, ids, **kwargs):
    steered = steered_generate_kwargs(tokenizer(), policy)
    inputs = torch.tensor([ids])
    output = model("small").generate(
        inputs, attention_mask=torch.ones_like(inputs), do_sample=False, max_new_tokens=320,
        **steered, **kwargs,
    )  # fmt: skip
    return output[0, len(ids) :].tolist(), steered["custom_generate"].traces


def test_generate_is_steered():
    ids = prompts(4)[2]
    written, _ = generate({"policy": {"policy": "self_consistency", "n": 1}}, ids)
    assert written == alone("small", ids)
    spec = {"policy": {"policy": "first_try", "pattern": "=", "hard": 2}}
    written, (trace,) = generate(spec, ids)
    assert written == steer(spec, [ids])[0].ids
    assert trace.stopped == "candidate"


def test_what_generate_cannot_do_is_refused():
    with pytest.raises(SpecError, match="a second one"):
        generate("trimr", prompts(4)[2])
    with pytest.raises(UnsupportedError, match="num_beams"):
        generate("self_consistency", prompts(4)[2], num_beams=2)
    with pytest.raises(SpecError, match=r"policy\.probe_text"):
        generate("dynasor", prompts(4)[2])
