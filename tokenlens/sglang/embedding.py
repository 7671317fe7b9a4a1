"""SGLang's input embedding, with our op behind the lookup and before shards are summed.

Gemma 3, 3n and 4 have a table of their own kind, whole on every rank: the op is put between its
look-up and what it makes of the rows (their scale).
"""

from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn

from tokenlens.errors import EmbeddingError
from tokenlens.serving.embedding import EmbeddingLayout, cannot, mix
from tokenlens.serving.engine_vectors import sum_over
from tokenlens.sglang.head import head_of, scale_of

INSTEAD = "after --tokenlens-allow"


def layout(max_requests: int) -> EmbeddingLayout:
    """How SGLang embeds tokens, at most so many requests at once. Imports SGLang."""
    from sglang.srt.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
    from sglang.srt.models.gemma3_causal import Gemma3TextScaledWordEmbedding

    return EmbeddingLayout(
        (VocabParallelEmbedding, Gemma3TextScaledWordEmbedding),
        ParallelLMHead,
        _mixed,
        INSTEAD,
        _refuse_adapters,
        _prepare,
        total=_total,
        head_of=lambda model, table: head_of(model, table, max_requests),
        scale_of=scale_of,
    )


def _prepare(module: Any) -> None:
    if not hasattr(module, "shard_indices"):
        module.shard_indices = SimpleNamespace(org_vocab_start_index=0)


class _Lookup(nn.Embedding):
    """A plain look-up, followed by the op: what a subclass calls as its base's ``forward``."""

    def forward(self, input_: Tensor) -> Tensor:
        rows = super().forward(input_)
        mix(self, input_, rows)
        return rows


def _total(tensor: Tensor) -> Tensor:
    """The sum over all ranks, on each of them."""
    from sglang.srt.distributed import get_tp_group, tensor_model_parallel_all_reduce

    return sum_over(tensor, get_tp_group(), tensor_model_parallel_all_reduce)


def _refuse_adapters(name: str, module: nn.Module) -> None:
    if name.endswith(".base_layer"):
        raise EmbeddingError(
            f"{name}: got a LoRA adapter on the input embedding; allowed: none, because it adds to"
            " single tokens. Leave embed_tokens out of the adapter's modules."
            f" {cannot(INSTEAD)}"
        )


def _mixed(base: type[Any]) -> type[nn.Module]:
    """A subclass of the module's own class whose lookup is followed by the op."""
    if issubclass(base, nn.Embedding):
        # Behind the base and before its own base, in the order in which Python looks.
        return type(base.__name__, (base, _Lookup), {})

    class _Mixed(base):  # type: ignore[misc]  # the base is the engine's
        def _embed_local_shard(self, input_: Tensor) -> Tensor:
            rows: Tensor = super()._embed_local_shard(input_)
            mix(self, input_, rows)
            return rows

    return _Mixed
