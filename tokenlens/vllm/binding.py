"""Specs bound to the model that vLLM serves."""

from typing import Any

from tokenlens.serving.binding import Binder


def binder_of(model_config: Any, tokenizer: Any) -> Binder:
    """What resolves specs for one model.

    Parameters
    ----------
    model_config
        vLLM's configuration of the model.
    tokenizer
        Its tokenizer; ``None`` where vLLM runs without one.
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
    )


def stop_ids(params: Any) -> tuple[int, ...]:
    """Tokens that end a request, the model's own end of text first."""
    first = [] if params.eos_token_id is None else [int(params.eos_token_id)]
    others = {int(token) for token in params.stop_token_ids or ()} - set(first)
    return (*first, *sorted(others))
