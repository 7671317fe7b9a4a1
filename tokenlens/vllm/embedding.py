"""Mixtures inside vLLM's input embedding: our op behind the lookup, before shards are summed."""

from typing import Any

from torch import Tensor, nn

from tokenlens.errors import EmbeddingError
from tokenlens.serving import embedding as shared
from tokenlens.serving.store import ConceptStore


class InputEmbedding(shared.InputEmbedding):
    """The model's input embedding with our op behind it.

    Parameters
    ----------
    max_tokens
        The most tokens of one forward pass.
    """

    def __init__(self, model: nn.Module, store: ConceptStore, max_tokens: int) -> None:
        name, module = find_input_embedding(model)
        ranks = getattr(module, "tp_size", 1)
        if ranks > 1 and not hasattr(module, "reduce_results"):
            raise EmbeddingError(
                f"{name}: got tensor_parallel_size {ranks}; allowed: 1 on this vLLM,"
                " whose embedding sums over its shards before tokenlens can mix. Update vLLM."
            )
        super().__init__(name, module, store, max_tokens, _mixed)
        state: Any = module
        state.tokenlens_reduces = getattr(module, "reduce_results", True)
        if ranks > 1:
            # Mixing before the sum over shards costs no communication of its own.
            state.reduce_results = False


def find_input_embedding(model: nn.Module) -> tuple[str, nn.Module]:
    """The module that embeds the tokens of the text.

    Raises
    ------
    EmbeddingError
        None, several that could be it, or one that cannot be mixed.
    """
    from vllm.model_executor.layers.vocab_parallel_embedding import (
        ParallelLMHead,
        VocabParallelEmbedding,
    )

    return shared.find_input_embedding(
        model, VocabParallelEmbedding, ParallelLMHead, "in the setting allow"
    )


def _mixed(base: type[Any]) -> type[nn.Module]:
    """A subclass of the module's own class whose lookup is followed by the op."""

    class Mixed(base):  # type: ignore[misc]  # the base is the engine's
        def forward(self, input_: Tensor) -> Tensor:
            rows: Tensor = super().forward(input_)
            shared.mix(self, input_, rows)
            if self.tp_size > 1 and self.tokenlens_reduces:
                from vllm.distributed import tensor_model_parallel_all_reduce

                group = getattr(self, "parallel_group", None)
                rows = (
                    tensor_model_parallel_all_reduce(rows)
                    if group is None
                    else group.all_reduce(rows)
                )
            return rows

    return Mixed
