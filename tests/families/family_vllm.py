"""Runs one vLLM engine a model, in a process of its own, and replays what each traced.

``python family_vllm.py results.json NAME …``: text architectures of ``family_models``, and models
that see images of ``family_sight``. The environment decides which model runner it is.
"""

import gc
import json
import os
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
# Classes are tried here before they are on the list.
os.environ.setdefault("TOKENLENS_ANY_MODEL", "1")

import family_checks
import family_models
import family_sight
import torch

ENGINE: dict[str, Any] = {
    "enforce_eager": True,
    "dtype": "float32",
    "kv_cache_memory_bytes": 8 << 20,
    "max_model_len": 256,
    "block_size": 32,
    "max_num_seqs": 8,
    # Prompts, and the images in them, come in several chunks.
    "max_num_batched_tokens": 32,
    "disable_log_stats": True,
    "logits_processors": ["tokenlens.vllm:TokenLens"],
}
LONG = [10, *range(20, 47)]
"""In front of an image, so that a chunk ends in the middle of it."""


def requests(name: str, path: Path) -> list[tuple[str, str, list[int], int]]:
    """Name of the request, row of ``family_checks``, prompt, and which picture (0: none)."""
    start = family_models.START
    if name not in family_sight.NAMES:
        return [
            (row, row, prompt, 0) for row, prompt in zip(family_checks.ROWS, family_checks.PROMPTS)
        ]
    see = family_sight.shown(path)
    return [
        ("soft", "soft", [10, start, 11, 12], 0),
        ("gumbel", "gumbel", [10, 21, start], 0),
        ("plain", "plain", [10, start, 13], 0),
        ("soft, image", "soft", [*LONG, *see, 13, start, 14], 1),
        ("gumbel, image", "gumbel", [10, *see, 13, start, 15], 2),
        ("plain, image", "plain", [10, *see, 13, start, 16], 1),
    ]


def run(name: str, folder: Path) -> list[dict[str, Any]]:
    """Every request in one batch, twice: the second time prompts come from the prefix cache."""
    import transformers
    from vllm import LLM, SamplingParams

    from tokenlens.hf import verify_trace
    from tokenlens.vllm import extra_args, trace

    sees = name in family_sight.NAMES
    if sees:
        path = family_sight.build(name, folder)
        kind, more = transformers.AutoModelForImageTextToText, {"limit_mm_per_prompt": {"image": 1}}
    else:
        path = folder / name
        family_models.build(name).save_pretrained(path)
        kind, more = transformers.AutoModelForCausalLM, {"skip_tokenizer_init": True}
    # Ids that no token has are in no distribution of an engine that knows the tokenizer.
    tokenizer = transformers.AutoTokenizer.from_pretrained(path) if sees else None
    model = kind.from_pretrained(path, dtype=torch.float32).eval()
    specs = dict(zip(family_checks.ROWS, family_checks.specs()))
    asked = requests(name, path)
    prompts = [
        {
            "prompt_token_ids": prompt,
            **({"multi_modal_data": {"image": family_sight.picture(image)}} if image else {}),
        }
        for _, _, prompt, image in asked
    ]
    fixed = {"max_tokens": 24, "temperature": 0.0, "ignore_eos": True, "detokenize": False}
    params = [SamplingParams(**fixed, extra_args=extra_args(specs[row])) for _, row, _, _ in asked]
    llm = LLM(str(path), **{**ENGINE, **more})
    found = []
    try:
        for round_ in range(2):
            outputs = llm.generate(prompts, params, use_tqdm=False)
            for (request, _, _, image), output in zip(asked, outputs):
                one = trace(output)
                assert one is not None
                seen = family_sight.inputs(path, image, one) if image else {}
                result = verify_trace(model, tokenizer, one, inputs=seen)
                found.append(
                    {
                        "model": name,
                        "request": f"{request}, round {round_ + 1}",
                        "traced": result.traced.largest,
                        "tokens": result.tokens and result.tokens.largest,
                        "mixtures": result.mixtures,
                        "parted": result.parted,
                        "cached": output.num_cached_tokens,
                        "prompt": len(one.prompt_ids),
                    }
                )
    finally:
        llm.llm_engine.engine_core.shutdown()
    return found


def main(out: str, names: list[str]) -> None:
    """Run, and write what there is after each model."""
    from vllm.distributed import cleanup_dist_env_and_memory

    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            try:
                found[name] = run(name, Path(folder))
            except Exception as error:
                traceback.print_exc()
                found[name] = f"{type(error).__name__}: {error}"
            Path(out).write_text(json.dumps(found, indent=1))
            cleanup_dist_env_and_memory()
            gc.collect()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
