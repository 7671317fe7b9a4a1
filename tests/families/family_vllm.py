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
    "max_num_seqs": 16,
    # Prompts, and the images in them, come in several chunks.
    "max_num_batched_tokens": 32,
    "disable_log_stats": True,
    "logits_processors": ["tokenlens.vllm:TokenLens"],
}
# vLLM's attention on a CPU wants heads of at least 32.
family_models.SHAPE.update(head_dim=32, num_attention_heads=2, num_key_value_heads=1)
# Read by vLLM, and no field of its configuration.
family_models.MORE["glm4_moe"] = {"head_dim": 32}
LONG = [10, *range(20, 47)]
"""In front of an image, so that a chunk ends in the middle of it."""

PLAIN = "none"
"""No spec at all, where ``plain`` is one that has no methods."""


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
        ("none", PLAIN, [10, start, 17], 0),
        ("lead", "lead", [10, start, 18], 0),
        ("soft, image", "soft", [*LONG, *see, 13, start, 14], 1),
        ("gumbel, image", "gumbel", [10, *see, 13, start, 15], 2),
        ("plain, image", "plain", [10, *see, 13, start, 16], 1),
        ("none, image", PLAIN, [10, *see, 13, start, 17], 1),
        ("lead, image", "lead", [10, *see, 13, start, 18], 2),
    ]


def specs(name: str) -> dict[str, Any]:
    """By row: those of ``family_checks``, and LEAD with its visual anchor."""
    found = dict(zip(family_checks.ROWS, family_checks.specs()))
    if name in family_sight.NAMES:
        gate = {"of": "raw", "trend": True, "first": "latent", "dwell_discrete": 1}
        enter = {"tokens": family_sight.anchors(name), "keep": 0.4}
        found["lead"] = {
            **found["soft"],
            "methods": [{"method": "lead", "gate": gate, "enter": enter}],
        }
    return found


def load(name: str, folder: Path) -> tuple[Path, Any, Any, dict[str, Any]]:
    """A checkpoint, its model and tokenizer in transformers, and what its engine needs."""
    import transformers

    if name not in family_sight.NAMES:
        path = folder / name
        family_models.build(name).save_pretrained(path)
        model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        return path, model.eval(), None, {"skip_tokenizer_init": True}
    path, sight = family_sight.build(name, folder), family_sight.CLASSES[name]
    kind = transformers.AutoModelForImageTextToText
    model = kind.from_pretrained(path, dtype=getattr(torch, sight.dtype)).eval()
    more = {"limit_mm_per_prompt": {"image": 1}, "dtype": sight.dtype, **sight.engine}
    # Ids that no token has are in no distribution of an engine that knows the tokenizer.
    return path, model, transformers.AutoTokenizer.from_pretrained(path), more


def run(name: str, folder: Path) -> list[dict[str, Any]]:
    """Every request in one batch, twice: the second time prompts come from the prefix cache."""
    from vllm import LLM, SamplingParams

    from tokenlens.vllm import extra_args

    path, model, tokenizer, more = load(name, folder)
    for module in model.modules():
        # vLLM's backend for models of transformers changes their classes, which made this one.
        module.do_not_compile = True
    written, asked = specs(name), requests(name, path)
    prompts = [
        {
            "prompt_token_ids": prompt,
            **({"multi_modal_data": {"image": family_sight.picture(image)}} if image else {}),
        }
        for _, _, prompt, image in asked
    ]

    def params(row: str, ours: bool) -> Any:
        given = extra_args(written[row]) if ours and row != PLAIN else None
        return SamplingParams(
            max_tokens=24,
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
                found.append({**facts, **judged(path, model, tokenizer, output, image)})
    return found


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


def judged(path: Path, model: Any, tokenizer: Any, output: Any, image: int) -> dict[str, Any]:
    """A replay of what one request traced, and ``generate()`` on the same prompt."""
    from tokenlens.hf import verify_trace
    from tokenlens.vllm import trace

    one = trace(output)
    assert one is not None
    seen = family_sight.inputs(path, model, image, one) if image else {}
    result = verify_trace(model, tokenizer, one, inputs=seen)
    facts = {
        "traced": result.traced.largest,
        "mean": result.traced.mean,
        "tokens": result.tokens and result.tokens.largest,
        "mixtures": result.mixtures,
        "parted": result.parted,
        "prompt": len(one.prompt_ids),
    }
    if path.name in family_sight.NAMES:
        other = again(path, model, tokenizer, one, image)
        pairs = list(zip(one.steps, other.steps, strict=True))
        same = [mine.token == its.token for mine, its in pairs]
        facts["same"] = [*same, False].index(False)
        facts["anchored"] = sum(map(family_sight.anchored(path), one.steps))
        facts["anchored there"] = sum(map(family_sight.anchored(path), other.steps))
    return facts


def again(path: Path, model: Any, tokenizer: Any, one: Any, image: int) -> Any:
    """The trace of ``generate()`` on a trace's prompt."""
    from tokenlens.hf import generate_kwargs, traces

    prompt = one.model_copy(update={"steps": ()})
    seen = family_sight.inputs(path, model, image, prompt) if image else {}
    kwargs = generate_kwargs(model, tokenizer, one.spec)
    fixed = {"do_sample": False, "max_new_tokens": len(one.steps), "eos_token_id": None}
    ids = torch.tensor([one.prompt_ids])
    model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        pad_token_id=0,
        **seen,
        **kwargs,
        **fixed,
    )
    return traces(kwargs)[0]


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
