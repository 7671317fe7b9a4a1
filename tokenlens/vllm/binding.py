"""A spec bound to the model that vLLM serves: the same in the front end and in the worker.

The front end binds to find out whether it can be done (a 400 if not), the worker binds to do it.
"""

from typing import Any

from tokenlens.core import Request, bind
from tokenlens.spec import DecodingSpec
from tokenlens.vllm.arguments import SAMPLE_KEY, spec_of


def stop_ids(params: Any) -> tuple[int, ...]:
    """Tokens that end a request, the model's own end of text first."""
    first = [] if params.eos_token_id is None else [int(params.eos_token_id)]
    others = {int(token) for token in params.stop_token_ids or ()} - set(first)
    return (*first, *sorted(others))


class Binder:
    """Resolves specs for one model.

    Parameters
    ----------
    model_config
        vLLM's configuration of the model.
    tokenizer
        Its tokenizer; ``None`` where vLLM runs without one.
    """

    def __init__(self, model_config: Any, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        width = int(model_config.get_vocab_size())
        size = len(tokenizer) if hasattr(tokenizer, "__len__") else width
        self.vocab_size = min(size, width)
        self._bound: dict[tuple[Any, ...], Request] = {}

    def __call__(self, params: Any) -> Request | None:
        """The request in sampling parameters, ``None`` if they hold no spec.

        Raises
        ------
        SpecError
            What the spec asks for cannot be done with this model.
        """
        spec = spec_of(params.extra_args)
        if spec is None:
            return None
        request = self.bind(spec, stop_ids(params))
        index = int((params.extra_args or {}).get(SAMPLE_KEY, 0))
        return request.sample(index) if index else request

    def bind(self, spec: DecodingSpec, eos_ids: tuple[int, ...]) -> Request:
        """Resolve a spec, once for all requests that ask for the same."""
        key = (spec.model_dump_json(), eos_ids)
        if key not in self._bound:
            if len(self._bound) >= 256:
                self._bound.clear()
            self._bound[key] = bind(
                spec, tokenizer=self.tokenizer, vocab_size=self.vocab_size, eos_ids=eos_ids
            )
        return self._bound[key]
