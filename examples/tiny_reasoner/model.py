"""A lean Qwen3 forward for training and measuring on one CPU core.

Scope: the same function, parameter names and initialisation scale as transformers'
``Qwen3ForCausalLM`` (a test compares the logits), without its per-call overhead. It reads token ids
or input embeddings, and an optional key/value cache. No padding mask: batches are padded on the
right and attention is causal.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEAD_SIZE = 64
ROPE_THETA = 10_000.0
NORM_EPSILON = 1e-6
MAX_POSITIONS = 1024


@dataclass(frozen=True)
class Shape:
    """Sizes of one model."""

    hidden: int
    layers: int
    heads: int
    mlp: int
    vocab: int = 128


def hf_config(shape: Shape, eos: int, pad: int) -> dict:
    """Return ``config.json`` as transformers 4.57 and 5, vLLM and SGLang read it.

    transformers 5 reads ``rope_parameters`` and ``dtype``; 4.57 and the engines' older releases
    read ``rope_theta`` and ``torch_dtype``: both are written.
    """
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": None,
        "eos_token_id": eos,
        "pad_token_id": pad,
        "head_dim": HEAD_SIZE,
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "initializer_range": 0.02,
        "intermediate_size": shape.mlp,
        "layer_types": ["full_attention"] * shape.layers,
        "max_position_embeddings": MAX_POSITIONS,
        "max_window_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.heads,
        "rms_norm_eps": NORM_EPSILON,
        "rope_parameters": {"rope_theta": ROPE_THETA, "rope_type": "default"},
        "rope_scaling": None,
        "rope_theta": ROPE_THETA,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "dtype": "float16",
        "torch_dtype": "float16",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": shape.vocab,
    }


class RMSNorm(nn.Module):
    """Root-mean-square norm with a learned scale."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), NORM_EPSILON)


class Attention(nn.Module):
    """Causal self-attention with norms on queries and keys, and rotary positions."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        inner = shape.heads * HEAD_SIZE
        self.heads = shape.heads
        self.q_proj = nn.Linear(shape.hidden, inner, bias=False)
        self.k_proj = nn.Linear(shape.hidden, inner, bias=False)
        self.v_proj = nn.Linear(shape.hidden, inner, bias=False)
        self.o_proj = nn.Linear(inner, shape.hidden, bias=False)
        self.q_norm = RMSNorm(HEAD_SIZE)
        self.k_norm = RMSNorm(HEAD_SIZE)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: Tensor | None, start: int):
        batch, length, _ = x.shape
        split = (batch, length, self.heads, HEAD_SIZE)
        query = _rotate(self.q_norm(self.q_proj(x).view(split)).transpose(1, 2), cos, sin)
        key = _rotate(self.k_norm(self.k_proj(x).view(split)).transpose(1, 2), cos, sin)
        value = self.v_proj(x).view(split).transpose(1, 2)
        causal = True
        if cache is not None:
            cache[0, :, :, start : start + length] = key
            cache[1, :, :, start : start + length] = value
            key, value = cache[:, :, :, : start + length]
            causal = start == 0
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=causal)
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, length, -1))


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden, shape.mlp, bias=False)
        self.up_proj = nn.Linear(shape.hidden, shape.mlp, bias=False)
        self.down_proj = nn.Linear(shape.mlp, shape.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """One pre-norm transformer layer."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.self_attn = Attention(shape)
        self.mlp = MLP(shape)
        self.input_layernorm = RMSNorm(shape.hidden)
        self.post_attention_layernorm = RMSNorm(shape.hidden)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: Tensor | None, start: int):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, cache, start)
        return x + self.mlp(self.post_attention_layernorm(x))


class Body(nn.Module):
    """Embedding, layers and final norm; the name prefix ``model.`` of the weights."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab, shape.hidden)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = RMSNorm(shape.hidden)


class TinyQwen3(nn.Module):
    """The model; ``state_dict`` has the names of ``Qwen3ForCausalLM``."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.model = Body(shape)
        self.lm_head = nn.Linear(shape.hidden, shape.vocab, bias=False)
        frequency = ROPE_THETA ** -(torch.arange(0, HEAD_SIZE, 2).float() / HEAD_SIZE)
        angle = torch.outer(torch.arange(MAX_POSITIONS).float(), frequency).repeat(1, 2)
        # [max_positions, head_size] float32
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    def initialise(self, seed: int) -> None:
        """Draw fresh weights from ``seed``."""
        generator = torch.Generator().manual_seed(seed)
        deep = 0.02 / (2 * self.shape.layers) ** 0.5
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                scale = deep if name.endswith(("o_proj.weight", "down_proj.weight")) else 0.02
                parameter.data.normal_(0.0, scale, generator=generator)

    def new_cache(self, batch: int, length: int) -> Tensor:
        """Return an empty key/value cache ``[layers, 2, batch, heads, length, head_size]``."""
        return torch.zeros(self.shape.layers, 2, batch, self.shape.heads, length, HEAD_SIZE)

    def embed(self, ids: Tensor) -> Tensor:
        """Return the input embeddings of ``ids``."""
        return self.model.embed_tokens(ids)

    def forward(self, x: Tensor, cache: Tensor | None = None, start: int = 0) -> Tensor:
        """Return the last hidden state; ``lm_head`` turns (chosen positions of) it into logits.

        Parameters
        ----------
        x : Tensor
            ``[batch, length]`` ids or ``[batch, length, hidden]`` embeddings.
        cache : Tensor, optional
            From `new_cache`; filled at ``start``. With ``start > 0`` the length must be 1.
        start : int
            Position of the first entry of ``x``.
        """
        if x.dim() == 2:
            x = self.embed(x)
        end = start + x.shape[1]
        cos, sin = self.cos[start:end].to(x.dtype), self.sin[start:end].to(x.dtype)
        for index, layer in enumerate(self.model.layers):
            x = layer(x, cos, sin, None if cache is None else cache[index], start)
        return self.model.norm(x)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return x * cos + turned * sin


def describe(shape: Shape) -> dict:
    """Return the sizes and the number of parameters, for the training record."""
    count = sum(p.numel() for p in TinyQwen3(shape).parameters())
    return {**asdict(shape), "head_size": HEAD_SIZE, "parameters": count}
