"""What an engine that drafts hosts, and why not more. Reads configurations, imports no vLLM."""

from functools import cache
from typing import Any

from tokenlens.errors import SpecError
from tokenlens.spec import DecodingSpec, refuse_needs

METHODS = ("ngram", "ngram_gpu", "draft_model")
"""Ways to draft that tests have seen beside specs."""

MAX_ROWS_BYTES = 2**30
"""Beyond so many bytes of float32 logits vLLM verifies a batch in pieces."""


def drafts_of(config: Any) -> int:
    """The most drafts of a request in one step, 0 in an engine that does not speculate."""
    speculative = config.speculative_config
    return 0 if speculative is None else int(speculative.num_speculative_tokens or 0)


def draft_facts(config: Any) -> list[tuple[bool, str]]:
    """What is wrong with an engine that speculates: whether it is, and the reason."""
    speculative = config.speculative_config
    if speculative is None:
        return []
    method = getattr(speculative, "method", None) or "one"
    verifies = getattr(speculative, "rejection_sample_method", "standard")
    without = " Or leave speculative_config out."
    rows = drafts_of(config) + 1
    most = MAX_ROWS_BYTES // (4 * config.model_config.get_vocab_size())
    sequences = config.scheduler_config.max_num_seqs
    return [
        (
            method not in METHODS,
            f"speculative_config.method: got {method!r}; allowed: {', '.join(METHODS)}, because"
            f" others were not tested beside specs.{without}",
        ),
        (
            not getattr(config, "use_v2_model_runner", False),
            f"speculative_config: got {method!r} on vLLM's first model runner; allowed: its second"
            " (VLLM_USE_V2_MODEL_RUNNER=1, where Triton works), because the first judges drafts"
            f" without logits processors.{without}",
        ),
        (
            verifies != "standard",
            f"rejection_sample_method: got {verifies!r}; allowed: 'standard', because another may"
            " accept a draft where a spec forces a token.",
        ),
        (
            bool(getattr(speculative, "enable_adaptive_verification", False)),
            "enable_adaptive_verification: got True; allowed: False, because which drafts are"
            " verified is then only known on the device.",
        ),
        (
            sequences * rows > most,
            f"max_num_seqs: got {sequences} with {rows} rows of each; allowed: at most"
            f" {most // rows}, because vLLM verifies more in pieces. Or draft fewer tokens.",
        ),
    ]


def refuse_beside_drafts(spec: DecodingSpec, structured: bool) -> None:
    """Refuse a request that would be carried out wrongly by an engine that drafts.

    Parameters
    ----------
    structured
        It has a grammar.

    Raises
    ------
    SpecError
        Names the field and the way out.
    """
    way_out = "on an engine without speculative_config"
    refuse_needs(spec, "vLLM", why=f"beside drafts; it is hosted {way_out}")
    if structured and spec.methods:
        raise SpecError.of(
            "structured_outputs",
            "one",
            "null beside a spec, on an engine that drafts: the three were not tested. Ask"
            f" {way_out}",
        )


def hold_drafts(request: Any) -> None:
    """Have vLLM's scheduler give a request no drafts, whatever is proposed for it.

    A mixture that is fed next belongs to no draft: behind one, the model would have read the token.
    """
    cls: Any = type(request)
    request.__class__ = _held(cls)


@cache
def _held(cls: Any) -> Any:
    none = property(lambda self: [], lambda self, drafts: None)
    return type(cls.__name__, (cls,), {"spec_token_ids": none})
