"""Many markers in one batch, each row followed by its own; and markers in somebody else's words."""

import pytest
import quoted
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from tokenlens import assets
from tokenlens.hf import generate_kwargs, traces
from tokenlens.spec.turns import Turns

ROWS = 70
"""More than a server has room for with a vocabulary of 152 000."""


def test_every_row_of_a_batch_may_have_markers_of_its_own():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=160, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, eos_token_id=None, bos_token_id=1,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    specs, prompts = [], []
    for row in range(ROWS):
        start, end = [10 + 2 * row, 11 + 2 * row], [11 + 2 * row, 10 + 2 * row]
        phase = {"think_start": start, "think_end": end}
        methods = [{"method": "soft_thinking"}, {"method": "answer_now", "after": 2}]
        specs.append({"methods": methods, "phase": phase})
        # Every other row has a thought open, in its own markers; the others in their neighbour's.
        prompts.append([1, *start] if row % 2 else [1, 12 + 2 * row, 13 + 2 * row])
    kwargs = generate_kwargs(model, None, specs)
    ids = torch.tensor(prompts)
    new = model.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0, **kwargs)[:, 3:]
    for row, trace in enumerate(traces(kwargs)):
        assert trace.never_opened == (row % 2 == 0), row
        if row % 2:
            # Two mixtures, and then its own end is written.
            assert new[row, 2:4].tolist() == [11 + 2 * row, 10 + 2 * row], row
            assert trace.counts.latent_steps == 2, row


@pytest.mark.parametrize("guarded", [True, False])
def test_the_last_turn_of_a_prompt_alone_decides_the_phase(guarded, monkeypatch):
    if not guarded:
        monkeypatch.setattr(Turns, "follow", lambda *_: False)
    path = assets.path_of("tiny-reasoner-small")
    tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    prompts = quoted.prompts(tokenizer)
    spec = {"methods": [{"method": "soft_thinking"}], "trace": {"level": "full"}}
    kwargs = generate_kwargs(model, tokenizer, spec)
    batch = tokenizer.pad({"input_ids": [ids for ids, _ in prompts.values()]}, return_tensors="pt")
    model.generate(**batch, **kwargs, max_new_tokens=4, do_sample=False)
    steps = {name: one.steps for name, one in zip(prompts, traces(kwargs), strict=True)}
    found = {name: one[0].phase for name, one in steps.items()}
    if not guarded:
        opened = [name for name, (_, phase) in prompts.items() if phase == "prompt"]
        assert {found[name] for name in opened} == {"thinking"}
        return
    assert found == {name: phase for name, (_, phase) in prompts.items()}
    # Then the model opens its thinking by itself.
    for name, one in steps.items():
        assert one[0].latent == (found[name] == "thinking"), name
        assert one[1].latent == (found[name] != "answer"), name
