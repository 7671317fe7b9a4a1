"""Tiny random models of the architectures that embed in different ways."""

from unittest.mock import patch

import torch
import transformers
from hf_reference import Recipe, decode
from transformers.pytorch_utils import Conv1D

VOCAB = 96
START = 6  # stands for <think>; the end marker is the model's own, see `TinyModel`
STEPS = 16

SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
}

# Seed, initializer range and factor of the output embedding. Chosen so that trajectories change
# their mind, end thinking at different steps, and are not chaotic: in louder models differences of
# rounding grow until tokens differ.
WEIGHTS = {
    "qwen3": (7, 0.08, 2.0),
    "llama": (7, 0.1, 2.0),
    "llama-tied": (8, 0.15, 1.0),
    "gemma3": (9, 0.15, 1.0),
    "granite": (2, 0.12, 2.5),
    "gpt2": (1, 0.07, 2.5),
}
ARCHITECTURES = list(WEIGHTS)

PROMPTS = [[1, START, 11, 12, 13, 14, 15, 16], [1, 21, START], [1, 31, 32, START, 33]]


def build(name):
    """A model by the name of what it stresses; every call makes the same one."""
    T = transformers
    seed, initializer_range, loudness = WEIGHTS[name]
    shape = {**SHAPE, "initializer_range": initializer_range}
    if name == "qwen3":
        config = T.Qwen3Config(**shape, head_dim=16, tie_word_embeddings=False)
    elif name in ("llama", "llama-tied"):
        config = T.LlamaConfig(**shape, tie_word_embeddings=name == "llama-tied")
    elif name == "gemma3":
        config = T.Gemma3TextConfig(**shape, head_dim=16, sliding_window=8)
    elif name == "granite":
        config = T.GraniteConfig(**shape, embedding_multiplier=3.0, logits_scaling=2.0)
    elif name == "gpt2":
        config = T.GPT2Config(
            vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=2, n_positions=512, bos_token_id=1,
            eos_token_id=None, pad_token_id=0, tie_word_embeddings=False,
            initializer_range=initializer_range,
        )  # fmt: skip
    else:
        raise ValueError(name)
    drawn = patch.object(T.GPT2PreTrainedModel, "_init_weights", _draw)
    with torch.random.fork_rng(), drawn:
        torch.manual_seed(seed)
        model = T.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(loudness)
    return model


def _draw(model, module):
    """Draw GPT-2's weights: a part of transformers' releases forgets to scale its projections."""
    scale = model.config.initializer_range
    if isinstance(module, torch.nn.Embedding | torch.nn.Linear | Conv1D):
        torch.nn.init.normal_(module.weight, std=scale)
    if isinstance(getattr(module, "c_proj", None), Conv1D):
        torch.nn.init.normal_(module.c_proj.weight, std=scale / (2 * model.config.n_layer) ** 0.5)


class TinyModel:
    """A model, and the tokens at which its own latent trajectories end thinking or the text.

    ``end`` is first emitted by row 0 some steps into its thinking, ``eos`` by row 1 alone, while
    latent.
    """

    def __init__(self, name):
        self.name = name
        self.model = build(name)
        taken = {token for prompt in PROMPTS for token in prompt} | {0}
        self.end = -1
        first = self.reference(PROMPTS[0]).tokens
        for end in (token for token in _news(first, range(4, 8)) if token not in taken):
            self.end = end
            rows = [self.reference(prompt) for prompt in PROMPTS]
            taken_now = taken | {end, *rows[0].tokens, *rows[2].tokens}
            latent = [step for step in range(4, 10) if rows[1].latent[step]]
            for eos in (t for t in _news(rows[1].tokens, latent) if t not in taken_now):
                self.eos = eos
                return
        raise ValueError(f"{name}: no end and eos; choose other WEIGHTS")

    def spec(self, recipe=None, **fields):
        """A recipe as a spec for this model."""
        return {**(recipe or Recipe()).spec(start=START, end=self.end), **fields}

    def reference(self, prompt, recipe=None, *, steps=STEPS, **more):
        """What the independent loop makes of a prompt."""
        markers = {"start": START, "end": self.end}
        return decode(self.model, prompt, recipe or Recipe(), steps=steps, **markers, **more)

    def generate(self, prompts=PROMPTS, *, steps=STEPS, model=None, **kwargs):
        """Stock ``generate()``; scores and logits come along."""
        settings = {
            "max_new_tokens": steps,
            "do_sample": False,
            "pad_token_id": 0,
            "return_dict_in_generate": True,
            "output_logits": True,
            "output_scores": True,
        }
        return (model or self.model).generate(**batch(prompts), **settings | kwargs)


def _news(tokens, steps):
    """Tokens of these steps that were not there before."""
    return [tokens[step] for step in steps if tokens[step] not in tokens[:step]]


def batch(prompts):
    """Left-padded input ids and mask."""
    width = max(map(len, prompts))
    ids = torch.zeros(len(prompts), width, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    return {"input_ids": ids, "attention_mask": mask}


def new_tokens(output, prompts=PROMPTS):
    """``[num_rows, steps]``: what was generated."""
    return output.sequences[:, max(map(len, prompts)) :]


def up_to(tokens, last):
    """Tokens up to and including the first ``last``."""
    tokens = list(tokens)
    return tokens[: tokens.index(last) + 1] if last in tokens else tokens
