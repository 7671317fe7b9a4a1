"""Specs bound to the model that vLLM serves."""

from typing import Any

from tokenlens.core.layer_access import ModelShape
from tokenlens.serving.binding import Binder
from tokenlens.serving.structure import UNKNOWN, Grammars
from tokenlens.spec.finding import EngineMarkers


def reasoning_of(config: Any, tokenizer: Any) -> EngineMarkers | None:
    """What vLLM's reasoning parser says of the think markers; ``None`` without a parser."""
    reasoning = getattr(config, "reasoning_config", None)
    structured = getattr(config, "structured_outputs_config", None)
    parser = str(getattr(reasoning, "reasoning_parser", "") or "")
    parser = parser or str(getattr(structured, "reasoning_parser", "") or "")
    texts = []
    for name in ("reasoning_start_token_ids", "natural_reasoning_end_token_ids"):
        ids = getattr(reasoning, name, None)
        texts.append(tokenizer.decode(list(ids)).strip() if ids and tokenizer is not None else "")
    return EngineMarkers(parser, *texts) if parser or all(texts) else None


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
        vLLM's configuration of the model.
    tokenizer
        Its tokenizer; ``None`` where vLLM runs without one.
    engine
        What its reasoning parser says (:func:`reasoning_of`); the worker is told what was found.
    grammars
        Where its grammars begin; the worker is told as well.
    """
    eos = model_config.try_get_generation_config().get("eos_token_id")
    if eos is None:
        eos = getattr(model_config.hf_text_config, "eos_token_id", None)
    eos = [] if eos is None else [eos] if isinstance(eos, int) else eos
    return Binder(
        tokenizer,
        int(model_config.get_vocab_size()),
        [int(token) for token in eos],
        stop_ids,
        lambda params: params.extra_args,
        engine,
        lambda params: getattr(params, "structured_outputs", None) is not None,
        grammars,
        shape_of(model_config),
    )


def shape_of(model_config: Any) -> ModelShape:
    """The width and the number of layers of a model."""
    layers = int(model_config.get_total_num_hidden_layers())
    return ModelShape(int(model_config.get_hidden_size()), layers)


def stop_ids(params: Any) -> tuple[int, ...]:
    """Tokens that end a request, the model's own end of text first."""
    first = [] if params.eos_token_id is None else [int(params.eos_token_id)]
    others = {int(token) for token in params.stop_token_ids or ()} - set(first)
    return (*first, *sorted(others))
