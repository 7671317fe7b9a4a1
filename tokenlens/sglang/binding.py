"""Specs bound to the model that SGLang serves."""

from typing import Any

from tokenlens.core import Request
from tokenlens.serving import binding as shared


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


class Binder(shared.Binder):
    """Resolves specs for one model.

    Parameters
    ----------
    model_config
        SGLang's configuration of the model.
    tokenizer
        Its tokenizer; ``None`` where SGLang runs without one.
    """

    def __init__(self, model_config: Any, tokenizer: Any) -> None:
        eos = model_stop_ids(model_config, tokenizer)
        super().__init__(tokenizer, int(model_config.vocab_size), eos)
        self._eos = tuple(token for token in eos if token < self.vocab_size)

    def __call__(self, params: Any) -> Request | None:
        """The request in sampling parameters, ``None`` if they hold no spec."""
        return self.request(params.custom_params, params)

    def stop_ids(self, params: Any) -> tuple[int, ...]:
        """Tokens that end a request, the model's own before the request's."""
        if params.ignore_eos:
            return ()
        others = sorted({int(token) for token in params.stop_token_ids or ()} - set(self._eos))
        return (*self._eos, *others)
