"""Tiny random models that see images, with a tokenizer and a processor of their own.

Knows no engine. Everything is built here: nothing is loaded.
"""

import json
from pathlib import Path
from typing import Any

TOKENS = {
    "qwen": (
        "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>", "<|im_start|>",
        "<|im_end|>",
    ),
}  # fmt: skip
TEXT = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
    "initializer_range": 0.08,
    "tie_word_embeddings": False,
}
NAMES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")


def tokenizer(folder: Path) -> dict[str, int]:
    """A byte-level tokenizer as Qwen has it; returns the ids of its special tokens."""
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
        additional_special_tokens=list(TOKENS["qwen"]),
    )
    made.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    made.save_pretrained(folder)
    return {text: made.convert_tokens_to_ids(text) for text in TOKENS["qwen"]}


def build(name: str, folder: Path) -> Path:
    """A checkpoint of one class with everything that an engine loads."""
    import torch
    import transformers as T

    path = folder / name
    path.mkdir()
    ids = tokenizer(path)
    special = {
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
    }
    sight = {"depth": 2, "hidden_size": 32, "num_heads": 2, "intermediate_size": 48,
             "out_hidden_size": 64, "patch_size": 8, "spatial_merge_size": 2,
             "temporal_patch_size": 2, "initializer_range": 0.2}  # fmt: skip
    rope = {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 10000.0}
    text = {**TEXT, "rope_parameters": rope}
    text.pop("head_dim")
    text["num_attention_heads"], text["num_key_value_heads"] = 2, 1
    if name == "qwen2_vl":
        vision = {"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2,
                  "patch_size": 8, "spatial_merge_size": 2, "temporal_patch_size": 2}  # fmt: skip
        config = T.Qwen2VLConfig(text_config=text, vision_config=vision, **special)
        kind = T.Qwen2VLForConditionalGeneration
    elif name == "qwen2_5_vl":
        more = {"window_size": 32, "fullatt_block_indexes": [1]}
        config = T.Qwen2_5_VLConfig(text_config=text, vision_config={**sight, **more}, **special)
        kind = T.Qwen2_5_VLForConditionalGeneration
    elif name == "qwen3_vl":
        more = {"deepstack_visual_indexes": [0], "num_position_embeddings": 64}
        rope["mrope_interleaved"] = True
        text["head_dim"] = 32
        config = T.Qwen3VLConfig(text_config=text, vision_config={**sight, **more}, **special)
        kind = T.Qwen3VLForConditionalGeneration
    else:
        raise ValueError(name)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = kind(config).eval()
    model.save_pretrained(path)
    size = {"shortest_edge": 16 * 16, "longest_edge": 64 * 64}
    pixels = {"patch_size": 8, "temporal_patch_size": 2, "merge_size": 2, "size": size,
              "min_pixels": 256, "max_pixels": 4096,
              "image_mean": [0.5] * 3, "image_std": [0.5] * 3}  # fmt: skip
    processor = {"qwen2_vl": "Qwen2VLProcessor", "qwen2_5_vl": "Qwen2_5_VLProcessor",
                 "qwen3_vl": "Qwen3VLProcessor"}[name]  # fmt: skip
    image = {**pixels, "image_processor_type": "Qwen2VLImageProcessor",
             "processor_class": processor}  # fmt: skip
    video = {**pixels, "video_processor_type": "Qwen2VLVideoProcessor",
             "processor_class": processor}  # fmt: skip
    (path / "preprocessor_config.json").write_text(json.dumps(image))
    (path / "video_preprocessor_config.json").write_text(json.dumps(video))
    return path


def picture(seed: int) -> Any:
    """An image of 32 by 32 pixels."""
    import numpy as np
    from PIL import Image

    made = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    return Image.fromarray(made)


def shown(path: Path) -> list[int]:
    """Tokens that stand for one image in a prompt."""
    config = json.loads((path / "config.json").read_text())
    return [
        config[name] for name in ("vision_start_token_id", "image_token_id", "vision_end_token_id")
    ]


def inputs(path: Path, image: int, trace: Any) -> dict[str, Any]:
    """What a replay of a trace needs beside token ids."""
    import torch
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(path)
    pixels = dict(processor(images=[picture(image)], return_tensors="pt"))
    fed = [*trace.prompt_ids, *(step.token for step in trace.steps[:-1])]
    ids = torch.tensor([fed])
    return {**pixels, "mm_token_type_ids": (ids == shown(path)[1]).int()}
