"""Mixtures inside SGLang's input embedding: our op behind the lookup, before shards are summed."""

from typing import Any

from torch import Tensor, nn

from tokenlens.errors import EmbeddingError
from tokenlens.serving import embedding as shared
from tokenlens.serving.store import ConceptStore

INSTEAD = "after --tokenlens-allow"


class InputEmbedding(shared.InputEmbedding):
    """The model's input embedding with our op behind it.

    Parameters
    ----------
    max_tokens
        The most tokens of one forward pass.
    """

    def __init__(self, model: nn.Module, store: ConceptStore, max_tokens: int) -> None:
        super().__init__(*find_input_embedding(model), store, max_tokens, _mixed)


def find_input_embedding(model: nn.Module) -> tuple[str, nn.Module]:
    """The module that embeds the tokens of the text.

    Raises
    ------
    EmbeddingError
        None, several that could be it, or one that cannot be mixed.
    """
    from sglang.srt.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

    name, module = shared.find_input_embedding(
        model, VocabParallelEmbedding, ParallelLMHead, INSTEAD
    )
    if name.endswith(".base_layer"):
        raise EmbeddingError(
            f"{name}: got a LoRA adapter on the input embedding; allowed: none, because it adds to"
            " single tokens. Leave embed_tokens out of the adapter's modules."
            f" {shared.cannot(INSTEAD)}"
        )
    return name, module


def _mixed(base: type[Any]) -> type[nn.Module]:
    """A subclass of the module's own class whose lookup is followed by the op."""

    class Mixed(base):  # type: ignore[misc]  # the base is the engine's
        def _embed_local_shard(self, input_: Tensor) -> Tensor:
            rows: Tensor = super()._embed_local_shard(input_)
            shared.mix(self, input_, rows)
            return rows

    return Mixed
