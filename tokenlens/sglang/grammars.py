"""SGLang's structured outputs: where the grammar of a request begins. Knows no spec.

With a reasoning parser, the grammar of a request that reasons (``require_reasoning``) holds behind
the end of thinking (``constrained/reasoner_grammar_backend.py``); else from the first token.
"""

from collections.abc import Mapping
from typing import Any

from tokenlens.serving.structure import Grammars

FIELDS = ("json_schema", "regex", "ebnf", "structural_tag")

MOVED = ("reasoning_in_grammar", "reasoning_end_token_ids")
"""Of the keys by which ``custom_params`` move where a grammar begins: what their names end with."""


def is_held(params: Any) -> bool:
    """Whether sampling parameters, or what will become some, have a grammar."""
    return any(getattr(params, name, None) for name in FIELDS)


def grammars_of(server_args: Any, tokenizer: Any) -> Grammars:
    """Where the grammars of an engine begin."""
    name = getattr(server_args, "reasoning_parser", None)
    if not name or tokenizer is None:
        return Grammars()
    try:
        from sglang.srt.parser.reasoning_parser import ReasoningParser

        parser = ReasoningParser(model_type=name, stream_reasoning=False, tokenizer=tokenizer)
        ends = parser.detector.get_think_end_token_ids(tokenizer)
    except Exception:  # a parser for other models
        ends = []
    why = (
        f"the reasoning parser {name!r} has no end of thinking that is one token; start the engine"
        " with one that has, as qwen3 or deepseek-r1"
    )
    return Grammars(frozenset(ends) if len(ends) == 1 else frozenset(), why=why)


def holds_from_start(request: Any, params: Any) -> bool:
    """Whether a grammar would hold the first token of a request.

    Parameters
    ----------
    request
        SGLang's ``GenerateReqInput``.
    params
        Its ``SamplingParams``.
    """
    custom = params.custom_params if isinstance(params.custom_params, Mapping) else {}
    moved = any(str(key).endswith(MOVED) for key in custom)
    whole = bool(getattr(params, "ebnf_full_assistant", False))
    return moved or whole or not getattr(request, "require_reasoning", False)
