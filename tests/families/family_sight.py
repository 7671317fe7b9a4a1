"""Tiny random models that see images, with a tokenizer and a processor of their own.

Knows no engine. Everything is built here: nothing is loaded.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sight_shapes as shapes


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
    sglang
        The same of SGLang's.
    seed
        One with which no text has a token that stands for an image.
    side
        Pixels of an image, of which no processor makes more or fewer.
    renamed
        What weights are called in checkpoints, by what transformers calls them.
    note
        For the page.
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
    sglang: dict[str, Any] = field(default_factory=dict)
    seed: int = 3
    side: int = 32
    renamed: dict[str, str] = field(default_factory=dict)
    note: str = ""


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
SEES = {"enable_multimodal": True}
"""Without it SGLang takes no notice of images with these classes."""
RECURRENT = {"mamba_radix_cache_strategy": "no_buffer", "disable_overlap_schedule": True}
"""With which SGLang starts on a CPU where a model has a recurrent state."""

CLASSES = {
    "qwen2_vl": Sight(
        QWEN_TOKENS,
        "Qwen2VLForConditionalGeneration",
        shapes.qwen("Qwen2VLConfig", {}, shapes.QWEN2_TOWER),
        shapes.patched("Qwen2VLProcessor", patch=14),
        QWEN_PROMPT,
        side=56,
    ),
    "qwen2_5_vl": Sight(
        QWEN_TOKENS,
        "Qwen2_5_VLForConditionalGeneration",
        shapes.qwen("Qwen2_5_VLConfig", {}, shapes.QWEN25_TOWER),
        shapes.patched("Qwen2_5_VLProcessor", patch=14),
        QWEN_PROMPT,
        side=56,
    ),
    "qwen3_vl": Sight(
        QWEN_TOKENS,
        "Qwen3VLForConditionalGeneration",
        shapes.qwen(
            "Qwen3VLConfig",
            shapes.INTERLEAVED,
            {**shapes.QWEN3_TOWER, "deepstack_visual_indexes": [0]},
        ),
        shapes.patched("Qwen3VLProcessor", video="Qwen3VLVideoProcessor"),
        QWEN_PROMPT,
    ),
    "qwen3_5": Sight(
        QWEN_TOKENS,
        "Qwen3_5ForConditionalGeneration",
        shapes.qwen("Qwen3_5Config", shapes.GATED_DELTA, shapes.QWEN3_TOWER),
        shapes.patched("Qwen3VLProcessor", video="Qwen3VLVideoProcessor"),
        QWEN_PROMPT,
        dtype="bfloat16",
        sglang=RECURRENT,
        note="bfloat16, in which alone vLLM's CPU backend runs the gated delta rule: held to 0.03,"
        " and tokens instead of mixtures must be five times as far off. Its blocks are so large"
        " that nothing of these prompts is cached. Not on the list: on the second runner every row"
        " with an image is off, plain ones too, and one without a spec is not what it is without"
        " tokenlens. Its kernels run there in Triton's interpreter, whose bfloat16 is wrong.",
    ),
    "gemma3": Sight(
        GEMMA3_TOKENS,
        "Gemma3ForConditionalGeneration",
        shapes.gemma3,
        shapes.gemma3_processor,
        ("boi_token",),
        # In transformers the tokens of an image see each other; in the engines, on a CPU, they do
        # not.
        None,
        ("boi_token", "image_token", "eoi_token"),
        sglang=SEES,
        renamed={"vision_tower.": "vision_tower.vision_model."},
        note="The engines' backends for a CPU let the tokens of an image see only those before"
        " them, where transformers lets them see each other: the replay does as they do. With"
        " transformers' own mask, rows with an image are up to 7e-3 off on vLLM, plain ones too."
        " SGLang takes notice of images with `--enable-multimodal` only.",
    ),
    "gemma4": Sight(
        GEMMA4_TOKENS,
        "Gemma4ForConditionalGeneration",
        shapes.gemma4,
        shapes.gemma4_processor,
        anchors=("boi_token", "image_token", "eoi_token"),
        # An image is longer than the others' chunks.
        engine={"max_num_batched_tokens": 96},
        seed=4,
    ),
    "mistral3": Sight(
        MISTRAL_TOKENS,
        "Mistral3ForConditionalGeneration",
        shapes.mistral3,
        shapes.mistral3_processor,
        replayed=None,
        anchors=("image_break", "image_token", "image_end"),
        seed=4,
    ),
    "internvl": Sight(
        INTERN_TOKENS,
        "InternVLForConditionalGeneration",
        shapes.internvl,
        shapes.internvl_processor,
        ("context_image_token",),
        None,
        ("start_image_token", "context_image_token", "end_image_token"),
        note="SGLang has no class of this name and falls back to one of transformers', which takes"
        " no image beside token ids, and fails in its forward pass where it comes with a text.",
    ),
    "llama4": Sight(
        LLAMA_TOKENS,
        "Llama4ForConditionalGeneration",
        shapes.llama4,
        shapes.llama4_processor,
        ("fake",),
        None,
        sglang=SEES,
    ),
    "glm4v": Sight(
        GLM_TOKENS,
        "Glm4vForConditionalGeneration",
        shapes.glm4v,
        shapes.patched("Glm4vProcessor", "Glm4vImageProcessor", "Glm4vVideoProcessor"),
        ("start", "image_token", "end"),
    ),
}
NAMES = tuple(CLASSES)
MARKERS = {"think_start": "<think>", "think_end": "</think>"}
"""To be found in the vocabulary; the prompts' own stand-ins are ids (``family_models``)."""


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
        extra_special_tokens={**sight.tokens, **MARKERS},
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
        model = getattr(shapes.transformers(), sight.model)(sight.config(ids)).eval()
    model.save_pretrained(path)
    if sight.renamed:
        from safetensors.torch import load_file, save_file

        weights = load_file(path / "model.safetensors")
        for old, new in sight.renamed.items():
            weights = {name.replace(old, new): one for name, one in weights.items()}
        save_file(weights, path / "model.safetensors", {"format": "pt"})
    sight.processor(made).save_pretrained(path)
    return path


def picture(name: str, seed: int) -> Any:
    """An image for one class."""
    import numpy as np
    from PIL import Image

    side = CLASSES[name].side
    made = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
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
    pixels = dict(processor(images=[picture(path.name, image)], return_tensors="pt"))
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
