"""Configurations and processors of tiny models that see images, for ``family_sight``.

Processors import torchvision, of which nothing but its Python is called.
"""

import copy
from collections.abc import Callable
from typing import Any

TEXT: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
    "initializer_range": 0.08,
    "tie_word_embeddings": False,
}
HEADS = {"head_dim": 32}
TOWER: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "image_size": 32,
    "patch_size": 8,
    "initializer_range": 0.2,
}
QWEN_TOWER: dict[str, Any] = {
    **{"depth": 2, "hidden_size": 32, "num_heads": 2, "intermediate_size": 48},
    **{"out_hidden_size": 64, "patch_size": 8, "spatial_merge_size": 2, "temporal_patch_size": 2},
    "initializer_range": 0.2,
}
SIDES = {"height": 32, "width": 32}
AREA = {"shortest_edge": 16 * 16, "longest_edge": 64 * 64}
PATCHES = {"temporal_patch_size": 2, "merge_size": 2}
MROPE = {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 10000.0}


def transformers() -> Any:
    import transformers

    return transformers


def qwen_ids(ids: dict[str, int]) -> dict[str, int]:
    names = {"image_token_id": "image_token", "video_token_id": "video_token"}
    more = {"vision_start_token_id": "start", "vision_end_token_id": "end"}
    return {key: ids[name] for key, name in {**names, **more}.items()}


def qwen(config: str, text: dict[str, Any], tower: dict[str, Any]) -> Callable[..., Any]:
    def make(ids: dict[str, int]) -> Any:
        kind = getattr(transformers(), config)
        # Copies: configurations write into what they are given.
        whole = copy.deepcopy({**TEXT, "rope_parameters": MROPE, **text})
        return kind(text_config=whole, vision_config=dict(tower), **qwen_ids(ids))

    return make


def patched(
    processor: str,
    image: str = "Qwen2VLImageProcessor",
    video: str = "Qwen2VLVideoProcessor",
    patch: int = 8,
) -> Callable[..., Any]:
    def make(tokenizer: Any) -> Any:
        T = transformers()
        pixels = {
            **PATCHES,
            "patch_size": patch,
            "size": AREA,
            "image_mean": [0.5] * 3,
            "image_std": [0.5] * 3,
        }
        return getattr(T, processor)(
            image_processor=getattr(T, image)(**pixels),
            video_processor=getattr(T, video)(**pixels),
            tokenizer=tokenizer,
        )

    return make


def gemma3(ids: dict[str, int]) -> Any:
    text = {
        **TEXT,
        **HEADS,
        "num_hidden_layers": 3,
        "layer_types": ["sliding_attention", "full_attention", "full_attention"],
        "sliding_window": 64,
        "query_pre_attn_scalar": 32,
        "tie_word_embeddings": True,
    }
    return transformers().Gemma3Config(
        text_config=text,
        vision_config={**TOWER, "model_type": "siglip_vision_model", "vision_use_head": False},
        mm_tokens_per_image=4,
        boi_token_index=ids["boi_token"],
        eoi_token_index=ids["eoi_token"],
        image_token_index=ids["image_token"],
    )


def gemma3_processor(tokenizer: Any) -> Any:
    T = transformers()
    return T.Gemma3Processor(T.Gemma3ImageProcessor(size=SIDES), tokenizer, image_seq_length=4)


def gemma4(ids: dict[str, int]) -> Any:
    text = {
        **TEXT,
        **HEADS,
        "layer_types": ["sliding_attention", "full_attention"],
        "sliding_window": 256,
        "global_head_dim": 32,
        "hidden_size_per_layer_input": 16,
        "vocab_size_per_layer_input": 320,
        "tie_word_embeddings": True,
    }
    tower = {**TOWER, "num_key_value_heads": 2, "head_dim": 16, "position_embedding_size": 64}
    tower |= {"pooling_kernel_size": 2, "default_output_length": 70}
    del tower["image_size"]
    return transformers().Gemma4Config(
        text_config=text,
        vision_config=tower,
        audio_config=None,
        boi_token_id=ids["boi_token"],
        eoi_token_id=ids["eoi_token"],
        image_token_id=ids["image_token"],
        video_token_id=ids["video_token"],
        boa_token_id=ids["boa_token"],
        eoa_token_index=ids["eoa_token"],
        audio_token_id=ids["audio_token"],
    )


def gemma4_processor(tokenizer: Any) -> Any:
    T = transformers()
    pixels = {"patch_size": 8, "pooling_kernel_size": 2, "max_soft_tokens": 70}
    return T.Gemma4Processor(
        feature_extractor=T.Gemma4AudioFeatureExtractor(),
        image_processor=T.Gemma4ImageProcessor(**pixels),
        tokenizer=tokenizer,
        video_processor=T.Gemma4VideoProcessor(**pixels),
        image_seq_length=70,
    )


def mistral3(ids: dict[str, int]) -> Any:
    tower = {**TOWER, "model_type": "pixtral", "head_dim": 16, "image_size": 64}
    # As checkpoints have it: SGLang knows no other.
    tower["hidden_act"] = "silu"
    # Tied, as the configuration around it has it: SGLang asks this one.
    text = {"model_type": "mistral", "sliding_window": None, "tie_word_embeddings": True}
    return transformers().Mistral3Config(
        text_config={**TEXT, **HEADS, **text},
        vision_config=tower,
        image_token_index=ids["image_token"],
        spatial_merge_size=2,
    )


def mistral3_processor(tokenizer: Any) -> Any:
    T = transformers()
    pixels = T.PixtralImageProcessor(size={"longest_edge": 64}, patch_size=8)
    return T.PixtralProcessor(pixels, tokenizer, patch_size=8, spatial_merge_size=2)


def internvl(ids: dict[str, int]) -> Any:
    return transformers().InternVLConfig(
        text_config={**TEXT, "model_type": "qwen2"},
        vision_config={**TOWER, "layer_scale_init_value": 0.5},
        image_token_id=ids["context_image_token"],
        image_seq_length=4,
    )


def internvl_processor(tokenizer: Any) -> Any:
    T = transformers()
    pixels = {"size": SIDES, "crop_to_patches": False}
    return T.InternVLProcessor(
        T.GotOcr2ImageProcessor(**pixels),
        tokenizer,
        T.InternVLVideoProcessor(size=SIDES),
        image_seq_length=4,
    )


def llama4(ids: dict[str, int]) -> Any:
    text = {
        **TEXT,
        **HEADS,
        "intermediate_size_mlp": 96,
        "num_local_experts": 4,
        "num_experts_per_tok": 1,
        "attention_chunk_size": 512,
        "no_rope_layers": [1, 0],
    }
    tower = {**TOWER, "vision_output_dim": 64, "projector_input_dim": 64}
    tower |= {"projector_output_dim": 64, "intermediate_size": 128}
    return transformers().Llama4Config(
        text_config=text,
        vision_config=tower,
        boi_token_index=ids["start"],
        eoi_token_index=ids["end"],
        image_token_index=ids["image_token"],
    )


def llama4_processor(tokenizer: Any) -> Any:
    T = transformers()
    return T.Llama4Processor(
        T.Llama4ImageProcessor(size=SIDES, max_patches=1), tokenizer, patch_size=8
    )


def glm4v(ids: dict[str, int]) -> Any:
    rope = {**MROPE, "mrope_section": [2, 3, 3], "partial_rotary_factor": 0.5}
    return transformers().Glm4vConfig(
        text_config={**TEXT, "rope_parameters": rope},
        vision_config={**QWEN_TOWER, "image_size": 32},
        image_token_id=ids["image_token"],
        video_token_id=ids["video_token"],
        image_start_token_id=ids["start"],
        image_end_token_id=ids["end"],
        video_start_token_id=ids["video_start"],
        video_end_token_id=ids["video_end"],
    )


QWEN2_TOWER = {
    **{"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2},
    # As every checkpoint has it: SGLang reads both names, and no other size of a patch.
    **{"patch_size": 14, "in_chans": 3, "spatial_merge_size": 2, "temporal_patch_size": 2},
}
QWEN25_TOWER = {
    **{**QWEN_TOWER, "patch_size": 14, "in_chans": 3},
    **{"window_size": 56, "fullatt_block_indexes": [1]},
}
QWEN3_TOWER = {**QWEN_TOWER, "num_position_embeddings": 64}
WHOLE = {**MROPE, "mrope_interleaved": True, "partial_rotary_factor": 1.0}
INTERLEAVED = {**HEADS, "rope_parameters": WHOLE}
GATED_DELTA = {
    **INTERLEAVED,
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 1,
    "linear_num_value_heads": 1,
}
