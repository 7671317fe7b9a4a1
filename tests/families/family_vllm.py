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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
# Classes are tried here before they are on the list.
os.environ.setdefault("TOKENLENS_ANY_MODEL", "1")

import family_sight
from family_checks import BY_NAME, NAMED, named
from family_rows import PLAIN, STEPS, judged, load, opened, requests, specs

ENGINE: dict[str, Any] = {
    "enforce_eager": True,
    "dtype": "float32",
    "kv_cache_memory_bytes": 8 << 20,
    "max_model_len": 256,
    "block_size": 32,
    "max_num_seqs": 16,
    # Prompts, and the images in them, come in several chunks.
    "max_num_batched_tokens": 32,
    "disable_log_stats": True,
    "logits_processors": ["tokenlens.vllm:TokenLens"],
}


def run(name: str, folder: Path) -> list[dict[str, Any]]:
    """Every request in one batch, twice: the second time prompts come from the prefix cache."""
    from vllm import LLM, SamplingParams

    from tokenlens.vllm import extra_args, trace

    path, model, tokenizer = load(name, folder)
    more: dict[str, Any] = {}
    if name in family_sight.NAMES:
        sight = family_sight.CLASSES[name]
        more = {"limit_mm_per_prompt": {"image": 1}, "dtype": sight.dtype, **sight.engine}
    for module in model.modules():
        # vLLM's backend for models of transformers changes their classes, which made this one.
        module.do_not_compile = True
    written, asked = specs(name), requests(name, path)
    prompts = [
        {
            "prompt_token_ids": prompt,
            **({"multi_modal_data": {"image": family_sight.picture(name, image)}} if image else {}),
        }
        for _, _, prompt, image in asked
    ]

    def params(row: str, ours: bool) -> Any:
        given = extra_args(written[row]) if ours and row != PLAIN else None
        return SamplingParams(
            max_tokens=STEPS,
            temperature=0.0,
            ignore_eos=True,
            detokenize=False,
            extra_args=given,
            logprobs=0,
        )

    stock = {}
    if name in family_sight.NAMES:
        with engine(LLM, path, {**more, "logits_processors": None}) as llm:
            outputs = llm.generate(
                prompts, [params(row, False) for _, row, _, _ in asked], use_tqdm=False
            )
            stock = {one[0]: decoded(output) for one, output in zip(asked, outputs)}
    found = []
    with engine(LLM, path, more) as llm:
        for round_ in range(2):
            outputs = llm.generate(
                prompts, [params(row, True) for _, row, _, _ in asked], use_tqdm=False
            )
            for (request, row, _, image), output in zip(asked, outputs):
                facts = {"model": name, "request": f"{request}, round {round_ + 1}", "row": row}
                facts["cached"] = output.num_cached_tokens
                if row == PLAIN:
                    if round_ == 0:
                        facts["as stock"] = decoded(output) == stock[request]
                        found.append(facts)
                    continue
                found.append({**facts, **judged(path, model, tokenizer, trace(output), image)})
        found.append({"model": name, "row": BY_NAME, **by_name(llm, path)})
    return found


def by_name(llm: Any, path: Path) -> dict[str, Any]:
    """What becomes of a preset's name, as ``vllm_xargs`` bring it; no marker is written."""
    from vllm import SamplingParams

    from tokenlens.vllm import trace

    prompts, markers = opened(path)
    params = SamplingParams(
        max_tokens=5,
        temperature=0.0,
        ignore_eos=True,
        detokenize=False,
        logit_bias=dict.fromkeys(markers, -100.0),
        extra_args={"tokenlens": NAMED},
    )
    asked = [{"prompt_token_ids": prompt} for prompt in prompts.values()]
    outputs = llm.generate(asked, params, use_tqdm=False)
    return {one: named(trace(output)) for one, output in zip(prompts, outputs)}


@contextmanager
def engine(kind: Any, path: Path, more: dict[str, Any]) -> Iterator[Any]:
    """An engine that is gone afterwards."""
    from vllm.distributed import cleanup_dist_env_and_memory

    llm = kind(str(path), **{**ENGINE, **more})
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        cleanup_dist_env_and_memory()
        gc.collect()


def decoded(output: Any) -> list[Any]:
    """Tokens of an answer, and their log-probabilities."""
    one = output.outputs[0]
    return [(token, at[token].logprob) for token, at in zip(one.token_ids, one.logprobs)]


def main(out: str, names: list[str]) -> None:
    """Run, and write what there is after each model."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            try:
                found[name] = run(name, Path(folder))
            except Exception as error:
                traceback.print_exc()
                found[name] = f"{type(error).__name__}: {error}"
            Path(out).write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
