"""What an engine of its own is asked of each model, and how its traces are judged.

Knows no engine: :mod:`family_vllm` and :mod:`family_sglang` run them.
"""

from pathlib import Path
from typing import Any

import family_checks
import family_models
import family_sight
import torch

# Attention of engines on a CPU wants heads of at least 32.
family_models.SHAPE.update(head_dim=32, num_attention_heads=2, num_key_value_heads=1)
# Read by engines, and no field of its configuration.
family_models.MORE["glm4_moe"] = {"head_dim": 32}
family_models.MORE["gemma2"] = {"hidden_act": "gelu_pytorch_tanh"}
STEPS = 24
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
    # With the last tokens of these prompts LEAD reaches its anchor behind an image in every class.
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
        ("lead, image", "lead", [10, *see, 13, start, 46], 2),
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


def load(name: str, folder: Path, **otherwise: Any) -> tuple[Path, Any, Any]:
    """A checkpoint, its model, and its tokenizer where some ids have no token.

    Some fields of a text architecture's configuration may be otherwise.
    """
    import transformers

    if name not in family_sight.NAMES:
        path = folder / name
        family_models.build(name, **otherwise).save_pretrained(path)
        family_models.tokenizer().save_pretrained(path)
        model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        return path, model.eval(), None
    path, sight = family_sight.build(name, folder), family_sight.CLASSES[name]
    kind = transformers.AutoModelForImageTextToText
    model = kind.from_pretrained(path, dtype=getattr(torch, sight.dtype)).eval()
    # Ids that no token has are in no distribution of an engine that knows the tokenizer.
    return path, model, transformers.AutoTokenizer.from_pretrained(path)


def opened(path: Path) -> tuple[dict[str, list[int]], list[int]]:
    """The prompts of ``family_checks.OPENED`` with this tokenizer's markers, and the markers."""
    if path.name not in family_sight.NAMES:
        return family_checks.OPENED, [family_models.START, family_models.END]
    from transformers import AutoTokenizer

    made = AutoTokenizer.from_pretrained(path)
    start, end = map(made.convert_tokens_to_ids, family_sight.MARKERS.values())
    swapped = {family_models.START: start, family_models.END: end}
    prompts = {
        name: [swapped.get(token, token) for token in prompt]
        for name, prompt in family_checks.OPENED.items()
    }
    return prompts, [start, end]


def judged(path: Path, model: Any, tokenizer: Any, one: Any, image: int) -> dict[str, Any]:
    """A replay of a trace, and ``generate()`` on the same prompt."""
    from tokenlens.hf import verify_trace

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
