"""Tiny random models of the architectures that embed in different ways."""

import pytest
import torch
import transformers

VOCAB = 96
END = 7  # stands for </think>
START = 6
EOS = 5

SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": EOS,
    "pad_token_id": 0,
    # Larger values make trajectories chaotic: rounding differences grow until tokens differ.
    "initializer_range": 0.07,
}


def build(name):
    """A model by the name of what it stresses."""
    torch.manual_seed(3)
    T = transformers
    if name == "qwen3":
        config = T.Qwen3Config(**SHAPE, head_dim=16, tie_word_embeddings=False)
    elif name in ("llama", "llama-tied"):
        config = T.LlamaConfig(**SHAPE, tie_word_embeddings=name == "llama-tied")
    elif name == "gemma3":
        config = T.Gemma3TextConfig(**SHAPE, head_dim=16, sliding_window=8)
    elif name == "granite":
        config = T.GraniteConfig(**SHAPE, embedding_multiplier=3.0, logits_scaling=2.0)
    elif name == "gpt2":
        config = T.GPT2Config(
            vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=2, n_positions=512,
            bos_token_id=1, eos_token_id=EOS, pad_token_id=0, initializer_range=0.07,
        )  # fmt: skip
    else:
        raise ValueError(name)
    model = T.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        # A random model hardly changes its mind; this one does, and ends its thinking now and then.
        model.get_output_embeddings().weight.mul_(12 if name != "llama-tied" else 1)
    return model


ARCHITECTURES = ["qwen3", "llama", "llama-tied", "gemma3", "granite", "gpt2"]


@pytest.fixture(scope="session")
def models():
    """Models by name, made once."""
    made = {}

    def get(name):
        if name not in made:
            made[name] = build(name)
        return made[name]

    return get


@pytest.fixture
def model(models):
    """The model for tests in which the architecture does not matter."""
    return models("qwen3")


def batch(prompts):
    """Left-padded input ids and mask."""
    width = max(map(len, prompts))
    ids = torch.zeros(len(prompts), width, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    return {"input_ids": ids, "attention_mask": mask}


PROMPTS = [[1, START, 11, 12, 13, 14, 15, 16], [1, 21, START], [1, 31, 32, START, 33]]
