"""vLLM's input embedding, with our op behind the lookup and before shards are summed."""

from typing import Any

from torch import Tensor, nn

from tokenlens.errors import EmbeddingError
from tokenlens.serving.embedding import EmbeddingLayout, mix
from tokenlens.serving.engine_vectors import sum_over
from tokenlens.vllm.head import head_of, scale_of


def layout() -> EmbeddingLayout:
    """How vLLM embeds tokens. Imports vLLM."""
    from vllm.model_executor.layers.vocab_parallel_embedding import (
        ParallelLMHead,
        VocabParallelEmbedding,
    )

    return EmbeddingLayout(
        VocabParallelEmbedding,
        ParallelLMHead,
        _mixed,
        "in the setting allow",
        _refuse_early_sums,
        _sum_after_mixing,
        _total,
        head_of,
        scale_of,
    )


def _total(tensor: Tensor) -> Tensor:
    """The sum over all ranks, on each of them."""
    from vllm.distributed import get_tp_group, tensor_model_parallel_all_reduce

    return sum_over(tensor, get_tp_group(), tensor_model_parallel_all_reduce)


def _refuse_early_sums(name: str, module: Any) -> None:
    ranks = getattr(module, "tp_size", 1)
    if ranks > 1 and not hasattr(module, "reduce_results"):
        raise EmbeddingError(
            f"{name}: got tensor_parallel_size {ranks}; allowed: 1 on this vLLM, whose embedding"
            " sums over its shards before tokenlens can mix. Update vLLM."
        )


def _sum_after_mixing(module: Any) -> None:
    """Leave the sum over shards to our subclass: mixing before it costs no communication."""
    module.tokenlens_reduces = getattr(module, "reduce_results", True)
    if getattr(module, "tp_size", 1) > 1:
        module.reduce_results = False


def _mixed(base: type[Any]) -> type[nn.Module]:
    """A subclass of the module's own class whose lookup is followed by the op."""

    class _Mixed(base):  # type: ignore[misc]  # the base is the engine's
        def forward(self, input_: Tensor) -> Tensor:
            rows: Tensor = super().forward(input_)
            mix(self, input_, rows)
            if self.tp_size > 1 and self.tokenlens_reduces:
                from vllm.distributed import tensor_model_parallel_all_reduce

                group = getattr(self, "parallel_group", None)
                rows = (
                    tensor_model_parallel_all_reduce(rows)
                    if group is None
                    else group.all_reduce(rows)
                )
            return rows

    return _Mixed
