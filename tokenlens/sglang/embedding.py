"""Mixtures inside SGLang's input embedding: our op behind the lookup, before the sum over shards.

The op reads only tensors at fixed addresses, so that a captured graph replays it. Rows without a
mixture keep the bits that SGLang looked up. Knows no requests.
"""

from typing import Any

import torch
from torch import Tensor, nn

from tokenlens.vllm import embedding as engine_neutral
from tokenlens.vllm.embedding import NAMES, TABLE_DTYPES, EmbeddingError
from tokenlens.vllm.store import ConceptStore


def find_input_embedding(model: nn.Module) -> tuple[str, nn.Module]:
    """The module that embeds the tokens of the text, found by its type and name.

    Raises
    ------
    EmbeddingError
        None, several that could be it, or one that cannot be mixed.
    """
    from sglang.srt.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, VocabParallelEmbedding)
        and not isinstance(module, ParallelLMHead)
        and NAMES.search(name.removesuffix(".base_layer"))
    ]
    instead = " Latent methods cannot run on this model; all others can: --tokenlens-allow."
    if len(found) != 1:
        raise EmbeddingError(
            f"model: got {len(found)} input embeddings ({', '.join(name for name, _ in found)});"
            f" allowed: exactly one table of token embeddings.{instead}"
        )
    name, module = found[0]
    if name.endswith(".base_layer"):
        raise EmbeddingError(
            f"{name}: got a LoRA adapter on the input embedding; allowed: none, because it adds to"
            f" single tokens. Leave embed_tokens out of the adapter's modules.{instead}"
        )
    method = type(getattr(module, "quant_method", None)).__name__
    weight = getattr(module, "weight", None)
    if method != "UnquantizedEmbeddingMethod" or weight is None or weight.dtype not in TABLE_DTYPES:
        raise EmbeddingError(
            f"{name}: got an embedding table of {getattr(weight, 'dtype', None)} ({method});"
            " allowed: float32, bfloat16 or float16, not quantised, because rows of a quantised"
            f" table cannot be mixed.{instead}"
        )
    return name, module


class InputEmbedding(engine_neutral.InputEmbedding):
    """The model's input embedding with our op behind it.

    Parameters
    ----------
    max_tokens
        The most tokens of one forward pass.
    """

    def __init__(self, model: nn.Module, store: ConceptStore, max_tokens: int) -> None:
        self.name, module = find_input_embedding(model)
        # [max_tokens] int64, read by captured graphs: never replaced
        self.pointers = torch.full((max_tokens,), -1, dtype=torch.int64, device=store.ids.device)
        buffers = {"pointers": self.pointers, "weights": store.weights, "ids": store.ids}
        for name, tensor in buffers.items():
            module.register_buffer(f"tokenlens_{name}", tensor, persistent=False)
        module.__class__ = _mixed(type(module))


def _mixed(base: type[Any]) -> type[nn.Module]:
    """A subclass of the module's own class whose lookup is followed by the op."""

    class Mixed(base):  # type: ignore[misc]  # the base is the engine's
        def _embed_local_shard(self, input_: Tensor) -> Tensor:
            rows: Tensor = super()._embed_local_shard(input_)
            flat = rows.view(-1, rows.shape[-1])
            torch.ops.tokenlens_vllm.mix_rows(
                input_.reshape(-1).long(),
                self.tokenlens_pointers[: flat.shape[0]],
                self.tokenlens_ids,
                self.tokenlens_weights,
                self.weight,
                self.shard_indices.org_vocab_start_index,
                flat,
            )
            return rows

    Mixed.__name__ = Mixed.__qualname__ = base.__name__
    return Mixed
