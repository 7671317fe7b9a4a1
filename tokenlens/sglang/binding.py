"""Specs bound to the model that SGLang serves."""

from typing import Any

from tokenlens.core.layer_access import ModelShape
from tokenlens.serving.binding import Binder
from tokenlens.serving.structure import UNKNOWN, Grammars
from tokenlens.sglang.grammars import is_held
from tokenlens.spec.finding import EngineMarkers


def model_stop_ids(model_config: Any, tokenizer: Any) -> tuple[int, ...]:
    """Tokens that end a text, in the order of the generation config, as SGLang knows them."""
    found: list[int] = []
    for source in (
        getattr(getattr(model_config, "hf_generation_config", None), "eos_token_id", None),
        getattr(model_config, "hf_eos_token_id", None),
        getattr(tokenizer, "eos_token_id", None),
        getattr(tokenizer, "additional_stop_token_ids", None),
    ):
        if source is not None:
            ids = [source] if isinstance(source, int) else source
            # The generation config's order means something, that of a set does not.
            ids = sorted(ids) if isinstance(ids, (set, frozenset)) else list(ids)
            found += [int(token) for token in ids if int(token) not in found]
    return tuple(found)


def reasoning_of(server_args: Any) -> EngineMarkers | None:
    """What SGLang's reasoning detector says of the think markers; ``None`` without a parser."""
    parser = getattr(server_args, "reasoning_parser", None)
    if not isinstance(parser, str) or not parser:
        return None
    try:
        from sglang.srt.parser.reasoning_parser import ReasoningParser

        detector = ReasoningParser(model_type=parser).detector
    except Exception:  # one that needs a tokenizer or a request; its name says the family
        return EngineMarkers(parser)
    start = str(getattr(detector, "think_start_token", "") or "")
    return EngineMarkers(
        parser,
        start + str(getattr(detector, "think_start_self_label", "") or "") if start else "",
        str(getattr(detector, "think_end_token", "") or ""),
        str(getattr(detector, "tool_start_token", "") or ""),
    )


def binder_of(
    model_config: Any,
    tokenizer: Any,
    engine: EngineMarkers | None = None,
    grammars: Grammars = UNKNOWN,
) -> Binder:
    """What resolves specs for one model.

    Parameters
    ----------
    model_config
        SGLang's configuration of the model.
    tokenizer
        Its tokenizer; ``None`` where SGLang runs without one.
    engine
        What its reasoning parser says (:func:`reasoning_of`); the worker is told what was found.
    grammars
        Where its grammars begin; the worker is told as well.
    """
    eos = model_stop_ids(model_config, tokenizer)

    def stop_ids(params: Any) -> tuple[int, ...]:
        """Tokens that end a request, the model's own before the request's."""
        if params.ignore_eos:
            return ()
        own = tuple(token for token in eos if token < binder.vocab_size)
        others = sorted({int(token) for token in params.stop_token_ids or ()} - set(own))
        return (*own, *others)

    binder = Binder(
        tokenizer,
        int(model_config.vocab_size),
        eos,
        stop_ids,
        # An empty mapping is none.
        lambda params: params.custom_params or None,
        engine,
        is_held,
        grammars,
        shape_of(model_config),
    )
    return binder


def shape_of(model_config: Any) -> ModelShape:
    """The width and the number of layers of a model."""
    return ModelShape(int(model_config.hidden_size), int(model_config.num_hidden_layers))
