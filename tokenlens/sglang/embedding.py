"""SGLang's input embedding, with our op behind the lookup and before shards are summed."""

from typing import Any

from torch import Tensor, nn

from tokenlens.errors import EmbeddingError
from tokenlens.serving.embedding import EmbeddingLayout, cannot, mix

INSTEAD = "after --tokenlens-allow"


def layout() -> EmbeddingLayout:
    """How SGLang embeds tokens. Imports SGLang."""
    from sglang.srt.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

    return EmbeddingLayout(
        VocabParallelEmbedding, ParallelLMHead, _mixed, INSTEAD, _refuse_adapters
    )


def _refuse_adapters(name: str, module: nn.Module) -> None:
    if name.endswith(".base_layer"):
        raise EmbeddingError(
            f"{name}: got a LoRA adapter on the input embedding; allowed: none, because it adds to"
            " single tokens. Leave embed_tokens out of the adapter's modules."
            f" {cannot(INSTEAD)}"
        )


def _mixed(base: type[Any]) -> type[nn.Module]:
    """A subclass of the module's own class whose lookup is followed by the op."""

    class _Mixed(base):  # type: ignore[misc]  # the base is the engine's
        def _embed_local_shard(self, input_: Tensor) -> Tensor:
            rows: Tensor = super()._embed_local_shard(input_)
            mix(self, input_, rows)
            return rows

    return _Mixed
