"""Tiny random models that see images, with a tokenizer and a processor of their own.

Knows no engine. Everything is built here: nothing is loaded. Processors import torchvision, of
which nothing but its Python is called.
"""

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
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
PATCHES = {"patch_size": 8, "temporal_patch_size": 2, "merge_size": 2}
MROPE = {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 10000.0}


@dataclass(frozen=True)
class Sight:
    """What one class is built from.

    Attributes
    ----------
    tokens
        Special tokens by what transformers calls them.
    model
        Name of the class in transformers; its configuration is made of the token ids.
    processor
        Made of the tokenizer.
    prompt
        What stands for an image in a prompt, by the names in ``tokens``.
    replayed
        Inputs of a replay beside the image's: where the image is, by token.
    anchors
        LEAD's visual anchor: the tokens around an image, and its own.
    dtype
        The one in which an engine can run it on a CPU.
    engine
        What its engine needs beside.
    seed
        One with which no text has a token that stands for an image.
    renamed
        What weights are called in checkpoints, by what transformers calls them.
    """

    tokens: dict[str, str]
    model: str
    config: Callable[[dict[str, int]], Any]
    processor: Callable[[Any], Any]
    prompt: tuple[str, ...] = ("image_token",)
    replayed: str | None = "mm_token_type_ids"
    anchors: tuple[str, ...] = ("start", "image_token", "end")
    dtype: str = "float32"
    engine: dict[str, Any] = field(default_factory=dict)
    seed: int = 3
    renamed: dict[str, str] = field(default_factory=dict)


QWEN_TOKENS = {
    "start": "<|vision_start|>",
    "end": "<|vision_end|>",
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
}
QWEN_PROMPT = ("start", "image_token", "end")
GEMMA3_TOKENS = {
    "boi_token": "<start_of_image>",
    "eoi_token": "<end_of_image>",
    "image_token": "<image_soft_token>",
    **{f"newline_{n}": "\n" * n for n in range(1, 5)},
}
GEMMA4_TOKENS = {
    "boi_token": "<|image>",
    "eoi_token": "<image|>",
    "image_token": "<|image|>",
    "boa_token": "<|audio>",
    "eoa_token": "<audio|>",
    "audio_token": "<|audio|>",
    "video_token": "<|video|>",
}
MISTRAL_TOKENS = {
    "image_token": "[IMG]",
    "image_break": "[IMG_BREAK]",
    "image_end": "[IMG_END]",
}
INTERN_TOKENS = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}
LLAMA_TOKENS = {
    "fake": "<|image|>",
    "start": "<|image_start|>",
    "end": "<|image_end|>",
    "image_token": "<|patch|>",
    "tile_x": "<|tile_x_separator|>",
    "tile_y": "<|tile_y_separator|>",
}
GLM_TOKENS = {
    "start": "<|begin_of_image|>",
    "end": "<|end_of_image|>",
    "image_token": "<|image|>",
    "video_start": "<|begin_of_video|>",
    "video_end": "<|end_of_video|>",
    "video_token": "<|video|>",
}


def _transformers() -> Any:
    import transformers

    return transformers


def _qwen_ids(ids: dict[str, int]) -> dict[str, int]:
    names = {"image_token_id": "image_token", "video_token_id": "video_token"}
    more = {"vision_start_token_id": "start", "vision_end_token_id": "end"}
    return {key: ids[name] for key, name in {**names, **more}.items()}


def _qwen(config: str, text: dict[str, Any], tower: dict[str, Any]) -> Callable[..., Any]:
    def make(ids: dict[str, int]) -> Any:
        kind = getattr(_transformers(), config)
        # Copies: configurations write into what they are given.
        whole = copy.deepcopy({**TEXT, "rope_parameters": MROPE, **text})
        return kind(text_config=whole, vision_config=dict(tower), **_qwen_ids(ids))

    return make


def _patched(
    processor: str, image: str = "Qwen2VLImageProcessor", video: str = "Qwen2VLVideoProcessor"
) -> Callable[..., Any]:
    def make(tokenizer: Any) -> Any:
        T = _transformers()
        pixels = {**PATCHES, "size": AREA, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        return getattr(T, processor)(
            image_processor=getattr(T, image)(**pixels),
            video_processor=getattr(T, video)(**pixels),
            tokenizer=tokenizer,
        )

    return make


def _gemma3(ids: dict[str, int]) -> Any:
    text = {
        **TEXT,
        **HEADS,
        "num_hidden_layers": 3,
        "layer_types": ["sliding_attention", "full_attention", "full_attention"],
        "sliding_window": 64,
        "query_pre_attn_scalar": 32,
        "tie_word_embeddings": True,
    }
    return _transformers().Gemma3Config(
        text_config=text,
        vision_config={**TOWER, "model_type": "siglip_vision_model"},
        mm_tokens_per_image=4,
        boi_token_index=ids["boi_token"],
        eoi_token_index=ids["eoi_token"],
        image_token_index=ids["image_token"],
    )


def _gemma3_processor(tokenizer: Any) -> Any:
    T = _transformers()
    return T.Gemma3Processor(T.Gemma3ImageProcessor(size=SIDES), tokenizer, image_seq_length=4)


def _gemma4(ids: dict[str, int]) -> Any:
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
    return _transformers().Gemma4Config(
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


def _gemma4_processor(tokenizer: Any) -> Any:
    T = _transformers()
    pixels = {"patch_size": 8, "pooling_kernel_size": 2, "max_soft_tokens": 70}
    return T.Gemma4Processor(
        feature_extractor=T.Gemma4AudioFeatureExtractor(),
        image_processor=T.Gemma4ImageProcessor(**pixels),
        tokenizer=tokenizer,
        video_processor=T.Gemma4VideoProcessor(**pixels),
        image_seq_length=70,
    )


def _mistral3(ids: dict[str, int]) -> Any:
    tower = {**TOWER, "model_type": "pixtral", "head_dim": 16, "image_size": 64}
    return _transformers().Mistral3Config(
        text_config={**TEXT, **HEADS, "model_type": "mistral", "sliding_window": None},
        vision_config=tower,
        image_token_index=ids["image_token"],
        spatial_merge_size=2,
    )


def _mistral3_processor(tokenizer: Any) -> Any:
    T = _transformers()
    pixels = T.PixtralImageProcessor(size={"longest_edge": 64}, patch_size=8)
    return T.PixtralProcessor(pixels, tokenizer, patch_size=8, spatial_merge_size=2)


def _internvl(ids: dict[str, int]) -> Any:
    return _transformers().InternVLConfig(
        text_config={**TEXT, "model_type": "qwen2"},
        vision_config={**TOWER, "layer_scale_init_value": 0.5},
        image_token_id=ids["context_image_token"],
        image_seq_length=4,
    )


def _internvl_processor(tokenizer: Any) -> Any:
    T = _transformers()
    pixels = {"size": SIDES, "crop_to_patches": False}
    return T.InternVLProcessor(
        T.GotOcr2ImageProcessor(**pixels),
        tokenizer,
        T.InternVLVideoProcessor(size=SIDES),
        image_seq_length=4,
    )


def _llama4(ids: dict[str, int]) -> Any:
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
    return _transformers().Llama4Config(
        text_config=text,
        vision_config=tower,
        boi_token_index=ids["start"],
        eoi_token_index=ids["end"],
        image_token_index=ids["image_token"],
    )


def _llama4_processor(tokenizer: Any) -> Any:
    T = _transformers()
    return T.Llama4Processor(
        T.Llama4ImageProcessor(size=SIDES, max_patches=1), tokenizer, patch_size=8
    )


def _glm4v(ids: dict[str, int]) -> Any:
    rope = {**MROPE, "mrope_section": [2, 3, 3], "partial_rotary_factor": 0.5}
    return _transformers().Glm4vConfig(
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
    **{"patch_size": 8, "spatial_merge_size": 2, "temporal_patch_size": 2},
}
QWEN25_TOWER = {**QWEN_TOWER, "window_size": 32, "fullatt_block_indexes": [1]}
QWEN3_TOWER = {**QWEN_TOWER, "num_position_embeddings": 64}
WHOLE = {**MROPE, "mrope_interleaved": True, "partial_rotary_factor": 1.0}
INTERLEAVED = {**HEADS, "rope_parameters": WHOLE}
GATED_DELTA = {
    **INTERLEAVED,
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 1,
    "linear_num_value_heads": 1,
}

CLASSES = {
    "qwen2_vl": Sight(
        QWEN_TOKENS,
        "Qwen2VLForConditionalGeneration",
        _qwen("Qwen2VLConfig", {}, QWEN2_TOWER),
        _patched("Qwen2VLProcessor"),
        QWEN_PROMPT,
    ),
    "qwen2_5_vl": Sight(
        QWEN_TOKENS,
        "Qwen2_5_VLForConditionalGeneration",
        _qwen("Qwen2_5_VLConfig", {}, QWEN25_TOWER),
        _patched("Qwen2_5_VLProcessor"),
        QWEN_PROMPT,
    ),
    "qwen3_vl": Sight(
        QWEN_TOKENS,
        "Qwen3VLForConditionalGeneration",
        _qwen("Qwen3VLConfig", INTERLEAVED, {**QWEN3_TOWER, "deepstack_visual_indexes": [0]}),
        _patched("Qwen3VLProcessor", video="Qwen3VLVideoProcessor"),
        QWEN_PROMPT,
    ),
    "qwen3_5": Sight(
        QWEN_TOKENS,
        "Qwen3_5ForConditionalGeneration",
        _qwen("Qwen3_5Config", GATED_DELTA, QWEN3_TOWER),
        _patched("Qwen3VLProcessor", video="Qwen3VLVideoProcessor"),
        QWEN_PROMPT,
        dtype="bfloat16",
    ),
    "gemma3": Sight(
        GEMMA3_TOKENS,
        "Gemma3ForConditionalGeneration",
        _gemma3,
        _gemma3_processor,
        ("boi_token",),
        "token_type_ids",
        ("boi_token", "image_token", "eoi_token"),
        renamed={"vision_tower.": "vision_tower.vision_model."},
    ),
    "gemma4": Sight(
        GEMMA4_TOKENS,
        "Gemma4ForConditionalGeneration",
        _gemma4,
        _gemma4_processor,
        anchors=("boi_token", "image_token", "eoi_token"),
        # An image is longer than the others' chunks.
        engine={"max_num_batched_tokens": 96},
        seed=4,
    ),
    "mistral3": Sight(
        MISTRAL_TOKENS,
        "Mistral3ForConditionalGeneration",
        _mistral3,
        _mistral3_processor,
        replayed=None,
        anchors=("image_break", "image_token", "image_end"),
        seed=4,
    ),
    "internvl": Sight(
        INTERN_TOKENS,
        "InternVLForConditionalGeneration",
        _internvl,
        _internvl_processor,
        ("context_image_token",),
        None,
        ("start_image_token", "context_image_token", "end_image_token"),
    ),
    "llama4": Sight(
        LLAMA_TOKENS,
        "Llama4ForConditionalGeneration",
        _llama4,
        _llama4_processor,
        ("fake",),
        None,
    ),
    "glm4v": Sight(
        GLM_TOKENS,
        "Glm4vForConditionalGeneration",
        _glm4v,
        _patched("Glm4vProcessor", "Glm4vImageProcessor", "Glm4vVideoProcessor"),
        ("start", "image_token", "end"),
    ),
}
NAMES = tuple(CLASSES)


def tokenizer(sight: Sight) -> Any:
    """A byte-level tokenizer with the class's special tokens."""
    from tokenizers import pre_tokenizers
    from transformers import Qwen2Tokenizer

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {letter: place for place, letter in enumerate(alphabet)}
    made = Qwen2Tokenizer(
        vocab=vocab,
        merges=[],
        unk_token=None,
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        extra_special_tokens=sight.tokens,
    )
    made.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    return made


def build(name: str, folder: Path) -> Path:
    """A checkpoint of one class with everything that an engine loads."""
    import torch

    sight, path = CLASSES[name], folder / name
    made = tokenizer(sight)
    ids = {role: made.convert_tokens_to_ids(text) for role, text in sight.tokens.items()}
    with torch.random.fork_rng():
        torch.manual_seed(sight.seed)
        model = getattr(_transformers(), sight.model)(sight.config(ids)).eval()
    model.save_pretrained(path)
    if sight.renamed:
        from safetensors.torch import load_file, save_file

        weights = load_file(path / "model.safetensors")
        for old, new in sight.renamed.items():
            weights = {name.replace(old, new): one for name, one in weights.items()}
        save_file(weights, path / "model.safetensors", {"format": "pt"})
    sight.processor(made).save_pretrained(path)
    return path


def picture(seed: int) -> Any:
    """An image of 32 by 32 pixels."""
    import numpy as np
    from PIL import Image

    made = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    return Image.fromarray(made)


def shown(path: Path) -> list[int]:
    """Tokens that stand for one image in a prompt."""
    from transformers import AutoTokenizer

    sight, made = CLASSES[path.name], AutoTokenizer.from_pretrained(path)
    return [made.convert_tokens_to_ids(sight.tokens[role]) for role in sight.prompt]


def inputs(path: Path, model: Any, image: int, trace: Any) -> dict[str, Any]:
    """What a replay of a trace needs beside token ids."""
    import torch
    from transformers import AutoImageProcessor

    sight = CLASSES[path.name]
    processor = AutoImageProcessor.from_pretrained(path)
    pixels = dict(processor(images=[picture(image)], return_tensors="pt"))
    known = inspect.signature(model.forward).parameters
    found = {name: value for name, value in pixels.items() if name in known}
    found["pixel_values"] = found["pixel_values"].to(model.dtype)
    fed = [*trace.prompt_ids, *(step.token for step in trace.steps[:-1])]
    if sight.replayed is not None:
        place = model.config.image_token_id
        # Images are in the prompt: such a token that was written is none.
        kinds = [int(t == place and n < len(trace.prompt_ids)) for n, t in enumerate(fed)]
        found[sight.replayed] = torch.tensor([kinds])
    return found


def anchors(name: str) -> list[str]:
    """LEAD's visual anchor, as texts."""
    sight = CLASSES[name]
    return [sight.tokens[role] for role in sight.anchors]


def anchored(path: Path) -> Callable[[Any], bool]:
    """Whether a step of a trace was fed the anchor: three tokens with the same weight."""
    from transformers import AutoTokenizer

    made = AutoTokenizer.from_pretrained(path)
    ids = made.convert_tokens_to_ids(anchors(path.name))

    def found(step: Any) -> bool:
        last = dict(step.entries[-len(ids) :])
        return (
            step.latent and set(last) == set(ids) and max(last.values()) - min(last.values()) < 1e-6
        )

    return found
