"""Per-layer embeddings (Gemma 3n, Gemma 4): a second table, mixed as the input embedding is."""

import pytest
import torch
import transformers
from hf_models import PROMPTS, START, VOCAB, batch, new_tokens

from tokenlens.hf import generate_kwargs, traces, verify_trace
from tokenlens.hf.embedding import HookedEmbedding

TOLERANCE = 1e-4
STEPS = 10
SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
    "initializer_range": 0.1,
    "layer_types": ["sliding_attention", "full_attention"],
    "hidden_size_per_layer_input": 16,
}
MORE = {
    "Gemma3nTextConfig": {
        "num_kv_shared_layers": 0,
        "laurel_rank": 8,
        "activation_sparsity_pattern": [0.0, 0.0],
    },
    "Gemma4TextConfig": {"global_head_dim": 16},
}
SPEC = {
    "methods": [{"method": "soft_thinking"}],
    "phase": {"think_start": [START], "think_end": [7]},
    "trace": {"level": "full"},
}


CASES = [
    ("Gemma3nTextConfig", VOCAB),
    ("Gemma4TextConfig", VOCAB),
    # Its table need not know every token.
    ("Gemma3nTextConfig", VOCAB // 2),
]


@pytest.fixture(params=CASES, ids=str)
def model(request):
    name, size = request.param
    kind = getattr(transformers, name, None)
    if kind is None:
        pytest.skip(f"this transformers has no {name}")
    config = kind(**SHAPE, **MORE[name], vocab_size_per_layer_input=size)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        made = transformers.AutoModelForCausalLM.from_config(config).eval()
    for parameter, values in made.named_parameters():
        if parameter.endswith("correct_output_scale"):
            # Zero in a new model, which makes per-layer embeddings nothing.
            torch.nn.init.constant_(values, 1.0)
    try:
        made(input_ids=torch.tensor([[VOCAB - 1]]))
    except IndexError:
        pytest.skip("this transformers cannot look up tokens that the table does not know")
    return made


def generate(model, specs):
    kwargs = {} if specs is None else generate_kwargs(model, None, specs)
    output = model.generate(
        **batch(PROMPTS), **kwargs, max_new_tokens=STEPS, do_sample=False, eos_token_id=None,
        pad_token_id=0, return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip
    return output, None if specs is None else traces(kwargs)


@torch.no_grad()
def forward(model, prompt, trace, tables):
    """Logits of one forward pass that looks mixtures up in the tables of these names."""
    ids = torch.tensor([[*prompt, *(step.token for step in trace.steps[:-1])]])
    fed = {step.position: step.entries for step in trace.steps[:-1] if step.latent}
    assert len(fed) > 3

    def mix(module, args, output):
        out = output.clone()
        for place, entries in fed.items():
            rows = [
                w * module.embed_scale * module.weight[token]
                for token, w in entries
                if token < len(module.weight)
            ]
            out[0, place] = sum(rows, torch.zeros_like(out[0, place]))
        return out

    found = [one for name, one in model.named_modules() if name.rpartition(".")[2] in tables]
    assert len(found) == len(tables)
    handles = [one.register_forward_hook(mix) for one in found]
    try:
        return model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 :]
    finally:
        for handle in handles:
            handle.remove()


def apart(output, row, logits):
    return max(
        float((output.logits[step][row] - logits[step]).abs().max()) for step in range(STEPS)
    )


def test_both_tables_are_mixed(model):
    output, found = generate(model, SPEC)
    for row, prompt in enumerate(PROMPTS):
        both = forward(model, prompt, found[row], ("embed_tokens", "embed_tokens_per_layer"))
        assert apart(output, row, both) < TOLERANCE
        # The visible token in the second table is another input.
        assert apart(output, row, forward(model, prompt, found[row], ("embed_tokens",))) > 1e-2
        checked = verify_trace(model, None, found[row])
        assert checked.holds
        assert checked.tells


def test_left_out_it_is_seen(model, monkeypatch):
    monkeypatch.setattr(HookedEmbedding, "arm_beside", lambda self, feed, num_rows: None)
    output, found = generate(model, SPEC)
    both = forward(model, PROMPTS[0], found[0], ("embed_tokens", "embed_tokens_per_layer"))
    assert apart(output, 0, both) > 1e-2
    assert not verify_trace(model, None, found[0]).holds


def test_plain_rows_beside_mixtures_keep_their_bits(model):
    stock, _ = generate(model, None)
    beside, found = generate(model, [SPEC, {"methods": []}, SPEC])
    assert found[0].counts.latent_steps > 3
    assert torch.equal(new_tokens(beside)[1], new_tokens(stock)[1])
    for step in range(STEPS):
        assert torch.equal(beside.logits[step][1], stock.logits[step][1])


def test_one_entry_is_the_token(model):
    """A mixture of one token is what the model looks up for it, where the table has it."""
    one = {**SPEC, "methods": [{"method": "soft_thinking", "max_entries": 1}]}
    stock, _ = generate(model, None)
    output, found = generate(model, one)
    table = next(m for n, m in model.named_modules() if n.endswith("embed_tokens_per_layer"))
    if all(step.token < len(table.weight) for trace in found for step in trace.steps):
        assert torch.equal(output.sequences, stock.sequences)


def test_nothing_stays_on_the_model(model):
    generate(model, SPEC)
    assert not any(one._forward_hooks for one in model.modules())
