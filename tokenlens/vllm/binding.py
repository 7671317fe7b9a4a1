"""Specs bound to the model that vLLM serves."""

from typing import Any

from tokenlens.core import Request
from tokenlens.serving import binding as shared


class Binder(shared.Binder):
    """Resolves specs for one model.

    Parameters
    ----------
    model_config
        vLLM's configuration of the model.
    tokenizer
        Its tokenizer; ``None`` where vLLM runs without one.
    """

    def __init__(self, model_config: Any, tokenizer: Any) -> None:
        eos = model_config.try_get_generation_config().get("eos_token_id")
        if eos is None:
            eos = getattr(model_config.hf_text_config, "eos_token_id", None)
        eos = [] if eos is None else [eos] if isinstance(eos, int) else eos
        super().__init__(tokenizer, int(model_config.get_vocab_size()), [int(i) for i in eos])

    def __call__(self, params: Any) -> Request | None:
        """The request in sampling parameters, ``None`` if they hold no spec."""
        return self.request(params.extra_args, params)

    def stop_ids(self, params: Any) -> tuple[int, ...]:
        """Tokens that end a request, the model's own end of text first."""
        first = [] if params.eos_token_id is None else [int(params.eos_token_id)]
        others = {int(token) for token in params.stop_token_ids or ()} - set(first)
        return (*first, *sorted(others))
