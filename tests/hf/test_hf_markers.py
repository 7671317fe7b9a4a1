"""Many markers in one batch: each row is followed by its own."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tokenlens.hf import generate_kwargs, traces

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
