"""Every method that comes with tokenlens, in the order in which their hooks run: one list.

A name is a folder: its ``config.py`` holds ``CONFIG``, what a spec may ask, and imports no torch;
its ``step.py`` holds ``STEPS``, what carries it out. A new method adds its folder, and its name
here.
"""

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from tokenlens.spec.registry import register

if TYPE_CHECKING:
    from tokenlens.core.method import Method

ORDER = (
    "no_thinking",
    "answer_now",
    "thinking_budget",
    "cyclic_reflex",
    "static_window",
    "tip",
    "nowait",
    # After the biases: whether a token would be sampled depends on them.
    "s1",
    "alpha_one",
    "budget_guidance",
    # The entropy is that of the edited logits, and a truncation cuts what the temperature left.
    "edt",
    "hapo",
    "forking_temperature",
    "diffadapt",
    "top_h",
    "top_n_sigma",
    "min_p",
    "soft_thinking",
    "gumbel_noise",
    "dirichlet_noise",
    "soft_grpo_noise",
    "latent_grpo",
    "soft_tokens",
    # Its draws are from the edited logits: after every method that edits them.
    "cot2",
    "coconut",
    "latent_mas",
    # The gate comes after all that changes weights, and after Soft Thinking has proposed.
    "selar",
    "think_router",
    "latent_fusion",
    "swi_reasoning",
    "lead",
    # Before top1: a step that chance makes discrete is the engine's to sample.
    "random_route",
    "top1",
    # It ends a request whatever the others wanted of the step.
    "tripwire",
    # It changes no logits and no mixture.
    "east",
    "softcotpp",
)
"""A step that several methods share runs where the first of them stands."""

for _name in ORDER:
    register(import_module(f"tokenlens.methods.{_name}.config").CONFIG, built_in=True)


@cache
def steps() -> tuple["Method", ...]:
    """The steps of all methods, each once, in order. Imports torch."""
    from tokenlens.methods.trace import TRACE

    found: dict[Method, None] = {}
    for name in ORDER:
        found.update(dict.fromkeys(import_module(f"tokenlens.methods.{name}.step").STEPS))
    # Last: it asks only for what no other method has asked.
    return (*found, TRACE)


def __getattr__(name: str) -> Any:
    if name == "METHODS":
        return steps()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
