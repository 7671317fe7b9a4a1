"""The fields of a request: which are honoured, which change nothing, and that others are refused.

Two models write one text in many calls. What a field asks of a whole text would be applied anew to
each call, or to nothing, so the rule is an allow-list: a field that the router carries out, one
that changes no text, one at the value that changes nothing, or a 400 that names it. Knows no model.
"""

from collections.abc import Mapping
from typing import Any

MAX_PROBLEMS = 8
"""Wrong fields that one error names."""
MAX_SHOWN = 80
"""Characters of what was sent that one problem repeats."""

HARMLESS = frozenset({
    "user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
})  # fmt: skip
"""For whoever counts and bills; no text depends on them."""

DEFAULTS: dict[str, tuple[Any, ...]] = {
    # OpenAI
    "n": (1,), "best_of": (1,), "top_logprobs": (0,), "tools": ([],), "functions": ([],),
    "tool_choice": ("none", "auto"), "function_call": ("none", "auto"),
    "parallel_tool_calls": (True, False), "logit_bias": ({},), "presence_penalty": (0,),
    "frequency_penalty": (0,), "response_format": ({"type": "text"},), "stop": ([], ""),
    "echo": (False,), "suffix": ("",), "modalities": (["text"],), "store": (False,),
    "service_tier": ("auto", "default"), "verbosity": ("medium",),
    # vLLM and SGLang
    "min_p": (0,), "repetition_penalty": (1,), "length_penalty": (1,), "min_tokens": (0,),
    "use_beam_search": (False,), "stop_token_ids": ([],), "bad_words": ([],),
    "ignore_eos": (False,), "include_stop_str_in_output": (False,), "no_stop_trim": (False,),
    "skip_special_tokens": (True,), "spaces_between_special_tokens": (True,),
    "add_generation_prompt": (True,), "continue_final_message": (False,), "documents": ([],),
    "priority": (0,), "return_token_ids": (False,), "return_tokens_as_token_ids": (False,),
    "return_hidden_states": (False,), "return_cached_tokens_details": (False,),
    "detokenize": (True,), "include_reasoning": (True,),
    "separate_reasoning": (True,), "stream_reasoning": (True,),
    # llama.cpp
    "cache_prompt": (True, False), "n_probs": (0,), "typical_p": (1,), "mirostat": (0,),
    "repeat_penalty": (1,), "grammar": ("",), "typ_p": (1,), "dynatemp_range": (0,),
    "xtc_probability": (0,), "dry_multiplier": (0,), "timings_per_token": (False,),
}  # fmt: skip
"""Fields that are not carried out, with the values that ask for nothing."""

WHY = "two models write the text in many calls, each of which would apply it anew"


def same(value: Any, default: Any) -> bool:
    """Whether a value is a default; ``True`` is not 1."""
    if isinstance(value, bool) or isinstance(default, bool):
        return value is default
    if isinstance(value, (int, float)) and isinstance(default, (int, float)):
        return value == default
    return type(value) is type(default) and value == default


def refused(body: Mapping[str, Any], honoured: Mapping[str, Any], *, chat: bool) -> list[str]:
    """What is wrong with the fields of a request, a line each, :data:`MAX_PROBLEMS` at most.

    Parameters
    ----------
    honoured
        Names of the fields that the router carries out.
    chat
        Where ``logprobs`` is a switch; for completions, 0 asks for those of the text itself.
    """
    problems: list[str] = []
    # A chat's template has written the tokens that a tokenizer puts before a text.
    other: dict[str, tuple[Any, ...]] = {"logprobs": (False,), "add_special_tokens": (False,)}
    defaults = DEFAULTS | (other if chat else {"logprobs": ()})
    for name, value in body.items():
        # Null is what a client's library sends for a field that nobody set.
        if value is None or name in honoured or name in HARMLESS:
            continue
        allowed = defaults.get(name)
        if allowed is not None and any(same(value, one) for one in allowed):
            continue
        if len(problems) == MAX_PROBLEMS:
            problems.append("and more")
            break
        if allowed is None:
            says = "leave it out, because the router does not know it and drops nothing silently"
        else:
            values = " or ".join(repr(one) for one in allowed)
            says = f"{values + ', or ' if values else ''}leave it out, because {WHY}"
        problems.append(f"{shown(name)}: got {shown(value, quote=True)}; allowed: {says}")
    return problems


def shown(value: Any, *, quote: bool = False) -> str:
    """A bounded text of what was sent."""
    text = value if isinstance(value, str) else _text(value)
    if len(text) > MAX_SHOWN:
        text = text[: MAX_SHOWN - 1] + "…"
    return repr(text) if quote or not text.isprintable() else text


def _text(value: Any) -> str:
    if isinstance(value, (list, dict)):
        # The text of a large one would be made only to be cut.
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value)}"
    try:
        return str(value)
    except ValueError:  # an integer of thousands of digits
        return f"{type(value).__name__} that is too long to show"
