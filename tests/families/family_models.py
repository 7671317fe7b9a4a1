"""Tiny random models of every architecture, built from their configurations: nothing is loaded.

A line of ``MORE`` names what an architecture needs beyond ``SHAPE``; whatever its configuration
does not know of that is left out. Knows no engine.
"""

import inspect
from typing import Any

VOCAB = 96
END_OF_TEXT, START, END = 5, 6, 7
"""The latter two stand for the think markers."""

SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
    # Larger values make trajectories chaotic: rounding differences grow.
    "initializer_range": 0.08,
    # Mixtures of experts
    "moe_intermediate_size": 32,
    "num_experts": 4,
    "n_routed_experts": 4,
    "num_local_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "shared_expert_intermediate_size": 32,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    # Latent attention
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 16,
    # Recurrences
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "sliding_window": 8,
}

HYBRID = {"layer_types": ["linear_attention", "full_attention"]}
LATENT_ATTENTION = {"num_key_value_heads": 4}
MAMBA = {
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_d_state": 16,
    "mamba_chunk_size": 16,
}
SSM = {**MAMBA, "layer_types": ["mamba", "attention"]}
TINY_TABLE = {"vocab_size_per_layer_input": VOCAB, "hidden_size_per_layer_input": 16}

GROUPS: dict[str, str] = {
    "dense": "llama qwen2 qwen3 mistral ministral3 phi phi3 glm glm4 olmo olmo2 olmo3 smollm3"
    " seed_oss exaone4 cohere cohere2 granite granite_swa nemotron starcoder2 stablelm falcon arcee"
    " apertus hunyuan_v1_dense ernie4_5 helium nanochat youtu persimmon hrm_text",
    "scaled or normed embedding": "gemma gemma2 gemma3_text vaultgemma gemma4_unified_text"
    " inkling_text",
    "a second way in": "gemma3n_text gemma4_text qwen4_exp_text deepseek_v4",
    "mixture of experts": "qwen2_moe qwen3_moe mixtral gpt_oss glm4_moe glm4_moe_lite granitemoe"
    " granitemoeshared phimoe olmoe dots1 minimax_m2 minimax_m3_vl_text mimo_v2_flash longcat_flash"
    " ernie4_5_moe afmoe solar_open hunyuan_v1_moe exaone_moe hy_v3 hy_v4 cohere2_moe laguna"
    " lfm2_moe zaya",
    "latent, sparse, chunked attention": "deepseek_v2 deepseek_v3 deepseek_v32 glm_moe_dsa"
    " llama4_text",
    "recurrent, hybrid": "qwen3_next qwen3_5_text qwen3_5_moe_text olmo_hybrid kimi_linear"
    " granitemoehybrid nemotron_h bamba mamba mamba2 falcon_mamba falcon_h1 jamba lfm2",
    "older": "gpt2 gpt_neox gpt_bigcode opt bloom",
}
"""Every architecture, by what it stresses."""

MORE: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        [
            "youtu",
            "glm4_moe_lite",
            "longcat_flash",
            "deepseek_v2",
            "deepseek_v3",
            "deepseek_v32",
            "glm_moe_dsa",
        ],
        LATENT_ATTENTION,
    ),
    **dict.fromkeys(["qwen3_next", "qwen3_5_text", "qwen3_5_moe_text", "olmo_hybrid"], HYBRID),
    "kimi_linear": {**HYBRID, **LATENT_ATTENTION, "linear_head_dim": 16, "linear_num_heads": 4},
    "qwen4_exp_text": {
        **HYBRID,
        "ple_layer_ids": [1],
        "ple_embed_dim": 32,
        "heads_per_ngram": 2,
        "ngram_vocab_size_base": 64,
        "make_ngram_vocab_size_divisible_by": 16,
        "split_ngram_parts": 1,
        "hc_lowrank": 16,
        "eos_token_id": 5,
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
    },
    "granitemoehybrid": {**SSM, "shared_intermediate_size": 32},
    "bamba": {**MAMBA, "attn_layer_indices": [1]},
    "falcon_h1": {**MAMBA, "mamba_d_ssm": 128},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
    "mamba2": {"num_heads": 8, "head_dim": 16, "n_groups": 1, "state_size": 16, "chunk_size": 16},
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 16},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "gemma3n_text": {
        **TINY_TABLE,
        "layer_types": ["sliding_attention", "full_attention"],
        "num_kv_shared_layers": 0,
        "laurel_rank": 8,
        "activation_sparsity_pattern": [0.0, 0.0],
    },
    "gemma4_text": {**TINY_TABLE, "layer_types": ["sliding_attention", "full_attention"]},
    "longcat_flash": {
        **LATENT_ATTENTION,
        "num_layers": 1,
        "ffn_hidden_size": 96,
        "zero_expert_num": 2,
        "expert_ffn_hidden_size": 32,
        "moe_topk": 2,
    },
}
"""What an architecture needs beyond ``SHAPE``, or has otherwise."""

GROUP_OF = {name: group for group, names in GROUPS.items() for name in names.split()}
TEXT = tuple(GROUP_OF)


def config_of(name: str, **otherwise: Any) -> Any:
    """A tiny configuration of one architecture; some fields may be otherwise."""
    from transformers import CONFIG_MAPPING

    kind = CONFIG_MAPPING[name]
    known = set(inspect.signature(kind.__init__).parameters) | set(
        getattr(kind, "attribute_map", ())
    )
    for base in kind.__mro__:
        known |= set(getattr(base, "__annotations__", ()))
    values = {key: value for key, value in SHAPE.items() if key in known}
    return kind(**{**values, **MORE.get(name, {}), **otherwise})


def build(name: str, seed: int = 3, **otherwise: Any) -> Any:
    """A model; every call makes the same one."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config_of(name, **otherwise)).eval()
        for parameter, values in model.named_parameters():
            if parameter.endswith("correct_output_scale"):
                # Zero in a new model (Gemma 3n), which makes per-layer embeddings nothing.
                torch.nn.init.constant_(values, 1.0)
    return model


def tokenizer(markers: bool = True) -> Any:
    """A word a token, with think markers or without."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [f"w{token}" for token in range(VOCAB)]
    words[END_OF_TEXT] = "<|end|>"
    if markers:
        words[START], words[END] = "<think>", "</think>"
    vocab = {word: token for token, word in enumerate(words)}
    made = Tokenizer(models.WordLevel(vocab, unk_token="w0"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.add_tokens([AddedToken(word) for word in words if word.startswith("<")])
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|end|>")
