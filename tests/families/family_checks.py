"""What is asked of every architecture, and how it is judged: by replays, not by tokens.

Three rows in one left-padded batch, one soft, one with Gumbel noise, one plain. Mixtures amplify
rounding in random networks as in real ones, so that ids may part where everything is right.
"""

from typing import Any

import torch
from family_models import END, START

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
