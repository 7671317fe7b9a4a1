"""A spec bound to the model that SGLang serves: the same in the front end and in the scheduler.

The front end binds to find out whether it can be done (a 400 if not), the scheduler to do it.
"""

from typing import Any

from tokenlens.core import Request, bind
from tokenlens.sglang.arguments import SAMPLE_KEY, spec_of
from tokenlens.spec import DecodingSpec

MAX_BOUND = 256
"""Bound specs that are kept: clients repeat theirs."""


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


class Binder:
    """Resolves specs for one model.

    Parameters
    ----------
    model_config
        SGLang's configuration of the model.
    tokenizer
        Its tokenizer; ``None`` where SGLang runs without one.
    """

    def __init__(self, model_config: Any, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        width = int(model_config.vocab_size)
        size = len(tokenizer) if hasattr(tokenizer, "__len__") else width
        self.vocab_size = min(size, width)
        self._eos = tuple(
            token for token in model_stop_ids(model_config, tokenizer) if token < self.vocab_size
        )
        self._bound: dict[tuple[Any, ...], Request] = {}

    def __call__(self, params: Any) -> Request | None:
        """The request in sampling parameters, ``None`` if they hold no spec.

        Raises
        ------
        SpecError
            What the spec asks for cannot be done with this model.
        """
        spec = spec_of(params.custom_params)
        if spec is None:
            return None
        request = self.bind(spec, self._stop_ids(params))
        index = int(params.custom_params.get(SAMPLE_KEY, 0))
        return request.sample(index) if index else request

    def _stop_ids(self, params: Any) -> tuple[int, ...]:
        if params.ignore_eos:
            return ()
        others = sorted({int(token) for token in params.stop_token_ids or ()} - set(self._eos))
        return (*self._eos, *others)

    def bind(self, spec: DecodingSpec, eos_ids: tuple[int, ...]) -> Request:
        """Resolve a spec, once for all requests that ask for the same."""
        key = (spec.model_dump_json(), eos_ids)
        if key not in self._bound:
            if len(self._bound) >= MAX_BOUND:
                self._bound.clear()
            self._bound[key] = bind(
                spec, tokenizer=self.tokenizer, vocab_size=self.vocab_size, eos_ids=eos_ids
            )
        return self._bound[key]
