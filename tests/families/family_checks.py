"""What is asked of every architecture, and how it is judged: by replays, not by tokens.

Three rows in one left-padded batch, one soft, one with Gumbel noise, one plain. Mixtures amplify
rounding in random networks as in real ones, so that ids may part where everything is right.
"""

import re
import warnings
from typing import Any

import torch
from family_models import END, START, tokenizer

from tokenlens.errors import TokenlensError
from tokenlens.hf import Verification, generate_kwargs, traces, verify_trace

SOFT = {"method": "soft_thinking"}
ROWS: dict[str, list[dict[str, Any]]] = {
    "soft": [SOFT],
    "gumbel": [SOFT, {"method": "gumbel_noise", "temperature": 0.5}],
    "plain": [],
}
PROMPTS = ([1, START, 11, 12, 13, 14, 15, 16, 17, 18], [1, 21, START], [1, 31, 32, START, 33])
STEPS = 12


def specs() -> list[dict[str, Any]]:
    """A spec for each row, with a full trace."""
    phase = {"think_start": [START], "think_end": [END]}
    return [
        {"methods": methods, "seed": 3, "phase": phase, "trace": {"level": "full"}}
        for methods in ROWS.values()
    ]


def batch() -> dict[str, torch.Tensor]:
    """The prompts, padded on the left."""
    width = max(map(len, PROMPTS))
    rows = [[0] * (width - len(prompt)) + list(prompt) for prompt in PROMPTS]
    ids = torch.tensor(rows)
    return {"input_ids": ids, "attention_mask": (ids > 0).long()}


def replayed(model: Any, **settings: Any) -> dict[str, Verification]:
    """Every row through ``generate()``, and its trace through a replay."""
    kwargs = generate_kwargs(model, None, specs())
    fixed = {"do_sample": False, "max_new_tokens": STEPS, "eos_token_id": None, "pad_token_id": 0}
    model.generate(**batch(), **kwargs, **fixed, **settings)
    return {
        name: verify_trace(model, None, trace)
        for name, trace in zip(ROWS, traces(kwargs), strict=True)
    }


BY_NAME, NAMED = "by name", "soft"
"""A row of an engine's results, and its spec: a preset's name, which says nothing of markers."""
STOCK = "stock"
"""A row of the engine alone, without tokenlens."""
UNLIKE: dict[str, tuple[dict[str, Any], str]] = {
    **dict.fromkeys(
        ("mistral", "mixtral", "phi3"), ({"sliding_window": None}, "without a sliding window")
    ),
    "gemma": ({"hidden_act": "gelu_python"}, "with the exact GELU"),
}
"""What SGLang's own classes do whatever a configuration says: models are built like that there."""
OPENED = {"opened": [10, 11, START], "never opened": [10, 11, 12]}
"""A prompt that has opened the thinking, and one that has not; no marker is written in either."""


def by_name(model: Any) -> dict[str, Any]:
    """What ``generate_kwargs(model, tokenizer, "soft")`` does with each, and what is warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        kwargs = generate_kwargs(model, tokenizer(), NAMED)
        model.generate(
            torch.tensor(list(OPENED.values())),
            **kwargs,
            **{"do_sample": False, "max_new_tokens": 5, "eos_token_id": None, "pad_token_id": 0},
            suppress_tokens=[START, END],
        )
        found = dict(zip(OPENED, map(named, traces(kwargs)), strict=True))
    said = [str(one.message) for one in caught if "thinking never opened" in str(one.message)]
    return {**found, "said": said}


def named(trace: Any) -> dict[str, Any]:
    """What a trace says of markers that were to be found."""
    return {
        "latent": trace.counts.latent_steps,
        "never opened": trace.never_opened,
        "found": trace.spec.phase.found,
    }


def wrong_by_name(found: dict[str, Any]) -> str | None:
    """What is wrong with that, ``None`` if nothing is."""
    opened, never = (found[name] for name in OPENED)
    if not opened["latent"] or opened["never opened"]:
        return f"no latent thinking: {opened}"
    if never["latent"] or not never["never opened"]:
        return f"not said that nothing opened: {never}"
    if {one["found"] for one in (opened, never)} != {"vocabulary"}:
        return f"markers were found otherwise: {found}"
    return None


def first_words(error: str) -> str:
    """Of an error, for a page."""
    return re.split(r"\n|(?<=\w)\. ", error)[0][:160]


def static(model: Any) -> str:
    """What a static cache does: ``exact``, ``refused``, or that stock cannot have it either."""
    fixed = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    try:
        model.generate(**batch(), **fixed, cache_implementation="static")
    except Exception:
        return "stock fails"
    try:
        found = replayed(model, cache_implementation="static")
    except TokenlensError:
        return "refused"
    return "exact" if all(one.holds for one in found.values()) else "WRONG"
