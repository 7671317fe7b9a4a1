"""What to write instead of what people write first: flags of the papers' programs, YAML's traps."""

import math
from collections.abc import Collection, Mapping
from difflib import get_close_matches

from tokenlens.spec.installed import how_to_allow

_COLD = "cold_stop of soft_thinking"
_ENGINE = "the engine's own sampling parameters, which it uses outside of thinking"
FLAGS = {
    # Soft Thinking, its forks, SofT-GRPO, Latent-GRPO
    "max_topk": "max_entries, the entries of a concept token (top_k is the filter before it)",
    "topk": "top_k",
    "topp": "top_p",
    "minp": "min_p",
    "think_end_str": "phase.think_end",
    "enable_soft_thinking": "methods: [{method: soft_thinking}]",
    "early_stopping_entropy_threshold": f"entropy_threshold in {_COLD}",
    "early_stopping_length_threshold": f"patience in {_COLD}",
    "length_threshold": f"patience in {_COLD}",
    "gumbel_softmax_temperature": "{method: gumbel_noise, temperature: ...} in methods",
    "gumbel_temperature": "{method: gumbel_noise, temperature: ...} in methods",
    "use_gumbel_randomness": "{method: gumbel_noise} in methods",
    "add_noise_gumbel_softmax": "{method: gumbel_noise} in methods",
    "gumbel_tau": "{method: gumbel_noise, temperature: ...} in methods",
    "dirichlet_alpha": "{method: dirichlet_noise, concentration: ...} in methods",
    "dirichlet_temperature": "{method: dirichlet_noise, concentration: ...} in methods",
    "add_noise_dirichlet": "{method: dirichlet_noise} in methods",
    "noise_factor": "scale of {method: soft_grpo_noise} in methods",
    "after_thinking_temperature": _ENGINE,
    "after_thinking_top_p": _ENGINE,
    "after_thinking_top_k": _ENGINE,
    "after_thinking_min_p": _ENGINE,
    "max_new_tokens": _ENGINE,
    "max_tokens": _ENGINE,
    # SwiReasoning, LEAD, SeLaR, ThinkRouter
    "max_switch_count": "after in switch_control of swi_reasoning",
    "termination_max_tokens": "budget and switch_control of swi_reasoning",
    "convergence_words": "converge in switch_control of swi_reasoning",
    "termination_words": "terminate in switch_control of swi_reasoning",
    "window_size": "dwell_discrete in gate of swi_reasoning",
    "alpha_0": "keep in a blend (first, enter, leave) of swi_reasoning",
    "beta_0": "keep in a blend (first, enter, leave) of swi_reasoning",
    "entropy_threshold": f"entropy_threshold in {_COLD}, or enter in a gate",
    "confidence_threshold": "enter in gate of think_router",
    "contrastive_weight": "push of selar",
    "math_ids": "exempt in gate: math",
    # of the spec itself, one level too high or too low
    "think_start": "phase: {think_start: ...}",
    "think_end": "phase: {think_end: ...}",
    "trace_level": "trace: {level: ...}",
    # logit methods
    "amplitude_base": "amplitude",
    "thinking_token_budget": "{method: thinking_budget, budget: ...} in methods",
    "max_thinking_tokens": "{method: thinking_budget, budget: ...} in methods",
    "num_ignore": "ignore_end of s1",
    "max_tokens_thinking_tmp": "max_thinking of s1",
    "avg_thinking_tokens": "average_thinking of alpha_one",
    "tau": "temperature",
    "alpha": "concentration of dirichlet_noise, penalty of tip, or alpha of alpha_one and top_h",
    "beta": "duration of tip",
}
"""Names in the papers' programs, and where the same stands in a spec."""


METHODS = {
    "soft": "soft_thinking",
    "swir": "swi_reasoning",
    "budget": "thinking_budget",
    "budget_forcing": "s1",
    "think_budget": "thinking_budget",
}
"""Short names of methods, and ours."""


_TWICE = (
    "it is no method of a spec, but tokenlens.hf.think_at_hard_generate_kwargs: its second forward"
    " pass has keys of its own at the same position, for which vLLM and SGLang have no place"
)
ELSEWHERE = {"think_at_hard": _TWICE, "tah": _TWICE}
"""Methods that are not done by a spec, and what does them."""


def normal(name: str) -> str:
    """A flag's name without its dashes."""
    return name.strip().lstrip("-").replace("-", "_").lower()


def field_hint(
    name: str, known: Collection[str], methods: Collection[str], inner: Collection[str] = ()
) -> str:
    """What to write for an unknown field, empty if nothing comes to mind.

    Parameters
    ----------
    known
        The fields that there are at its place.
    methods
        The names of all methods.
    inner
        The fields of all methods, where the unknown one stands beside them.
    """
    if len(name) > 64:
        return ""
    name = normal(name)
    if name in known:
        return f"say {name}"
    if name in FLAGS:
        return f"say {FLAGS[name]}"
    if name in methods:
        return f"say methods: [{{method: {name}}}]"
    if name in inner:
        return f"say methods: [{{method: ..., {name}: ...}}], inside of the method that it is for"
    near = get_close_matches(name, known, n=1)
    return f"say {near[0]}" if near else ""


def unnamed_hint(value: object, methods: Collection[str]) -> str:
    """What to write for a method whose name stands where none is looked for."""
    if not isinstance(value, Mapping):
        return ""
    named = [value.get(key) for key in ("name", "type", "kind", "id")]
    for name in (*named, *(list(value) if len(value) == 1 else ())):
        if isinstance(name, str) and normal(name) in methods:
            return f"say {{method: {normal(name)}, ...}}, with its fields beside the name"
    return ""


def method_hint(name: object, methods: Collection[str]) -> str:
    """What to write for an unknown method, or for a method that is only named."""
    if not isinstance(name, str) or len(name) > 64:
        return ""
    if name not in methods and (way := how_to_allow(name)):
        return way
    if name not in methods and normal(name) in ELSEWHERE:
        return ELSEWHERE[normal(name)]
    near = get_close_matches(normal(name), methods, n=1)
    found = METHODS.get(normal(name)) or (near[0] if near else "")
    return f"say {{method: {found}}}" if found else ""


def number_hint(text: object) -> str:
    """What to write for a number that came as a text."""
    if not isinstance(text, str) or len(text) > 32:
        return ""
    try:
        number = float(text)
    except ValueError:
        return ""
    if not math.isfinite(number):
        return ""
    plain = repr(int(number)) if number.is_integer() else repr(number)
    if "e" in text.lower():
        return f"say {plain}: YAML takes {text} for a text, a number has a point before its e"
    return f"say {plain}, without quotes"


def text_hint(value: object) -> str:
    """What to write for a text that came as something else."""
    if isinstance(value, bool):
        return "put it in quotes: YAML takes yes, no, on and off for true and false"
    return ""
