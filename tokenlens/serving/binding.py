"""A spec bound to the model that a server serves: the same in the front end and in the worker.

The front end binds to find out whether it can be done (a 400 if not), the worker binds to do it.
"""

from collections.abc import Mapping
from typing import Any

from tokenlens.core import Request, bind
from tokenlens.serving.arguments import sample_of
from tokenlens.spec import DecodingSpec

MAX_BOUND = 256
"""Bound specs that are kept: clients repeat theirs."""


class Binder:
    """Resolves specs for one model.

    Parameters
    ----------
    tokenizer
        The model's tokenizer; ``None`` where the engine runs without one.
    width
        Columns of the model's logits.
    """

    def __init__(self, tokenizer: Any, width: int) -> None:
        self.tokenizer = tokenizer
        size = len(tokenizer) if hasattr(tokenizer, "__len__") else width
        self.vocab_size = min(size, width)
        self._bound: dict[tuple[Any, ...], Request] = {}

    def stop_ids(self, params: Any) -> tuple[int, ...]:
        """Tokens that end a request with these sampling parameters of the engine's, in order."""
        raise NotImplementedError

    def request(self, arguments: Mapping[str, Any] | None, params: Any) -> Request | None:
        """The request in a request's extra arguments, ``None`` if they hold no spec.

        Raises
        ------
        SpecError
            What the spec asks for cannot be done with this model.
        """
        found = sample_of(arguments)
        if found is None:
            return None
        spec, index = found
        return self.bind(spec, self.stop_ids(params)).sample(index)

    def bind(self, spec: DecodingSpec, eos_ids: tuple[int, ...]) -> Request:
        """Resolve a spec, once for all requests that ask for the same but for the seed."""
        key = (spec.model_copy(update={"seed": None}).model_dump_json(), eos_ids)
        if key not in self._bound:
            if len(self._bound) >= MAX_BOUND:
                self._bound.clear()
            self._bound[key] = bind(
                spec, tokenizer=self.tokenizer, vocab_size=self.vocab_size, eos_ids=eos_ids
            )
        return self._bound[key].seeded(spec)
