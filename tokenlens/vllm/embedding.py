"""Mixtures inside vLLM's input embedding: one op behind the lookup, fed by buffers that stay put.

The op is opaque to ``torch.compile`` and reads only tensors at fixed addresses, so that a captured
graph replays it. Rows without a mixture keep the bits that vLLM looked up. Knows no requests.
"""

import re
from typing import Any

import numpy as np
import torch
from tokenlens_kernels import concept_embedding, concept_mixture
from torch import Tensor, nn

from tokenlens.vllm.store import ConceptStore

NAMES = re.compile(
    r"(^|\.)(embed_tokens|wte|word_embeddings|tok_embeddings|embed_in|embedding|embeddings)$"
)
TABLE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class EmbeddingError(ValueError):
    """A model whose input embedding cannot be mixed."""


class Calls:
    """How often the op ran in this process: a stale compiled graph would leave it out."""

    count = 0


def _mix(
    token_ids: Tensor,
    pointers: Tensor,
    ids: Tensor,
    weights: Tensor,
    table: Tensor,
    shard_start: int,
    rows: Tensor,
) -> None:
    """Overwrite the rows of a lookup that are fed a concept token, in place.

    Parameters
    ----------
    token_ids
        ``[num_tokens]`` integers, what was looked up.
    pointers
        ``[num_tokens]`` int64: the entry that a token's place is fed, -1 for its own embedding.
    ids, weights
        The store's entries; that of a discrete token is the token itself with weight 1.
    table, shard_start
        ``[shard_size, hidden]`` and its first id.
    rows
        ``[num_tokens, hidden]``, zero for ids of another shard.
    """
    if rows.device.type == "cpu":
        _mix_on_processor(pointers, ids, weights, table, shard_start, rows)
        return
    Calls.count += 1
    # One launch; rows that point nowhere get the bits that they have.
    concept_embedding(
        token_ids.long(), pointers, ids, weights, table, shard_start=shard_start, out=rows
    )


def _mix_on_processor(
    pointers: Tensor, ids: Tensor, weights: Tensor, table: Tensor, shard_start: int, rows: Tensor
) -> None:
    Calls.count += 1
    # Reading the mask on the host is free here, and only here. On arrays this small numpy's calls
    # are the cheaper ones.
    place = pointers.numpy()
    fed = np.flatnonzero(place >= 0)
    if len(fed) == 0:
        return
    entries = place[fed]
    mixture = concept_mixture(
        table,
        torch.from_numpy(ids.numpy()[entries]),
        torch.from_numpy(weights.numpy()[entries]),
        shard_start=shard_start,
    )
    if len(fed) == len(place):
        rows.copy_(mixture)
    else:
        rows.index_copy_(0, torch.from_numpy(fed), mixture)


_LIBRARY = torch.library.Library("tokenlens_vllm", "DEF")
_LIBRARY.define(
    "mix_rows(Tensor token_ids, Tensor pointers, Tensor ids, Tensor weights, Tensor table,"
    " SymInt shard_start, Tensor(a!) rows) -> ()"
)
_LIBRARY.impl("mix_rows", _mix, "CompositeExplicitAutograd")
torch.library.register_fake("tokenlens_vllm::mix_rows", lambda *_: None, lib=_LIBRARY)


def find_input_embedding(model: nn.Module) -> tuple[str, nn.Module]:
    """The module that embeds the tokens of the text, found by its type and name.

    Raises
    ------
    EmbeddingError
        None, or several that could be it.
    """
    from vllm.model_executor.layers.vocab_parallel_embedding import (
        ParallelLMHead,
        VocabParallelEmbedding,
    )

    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, VocabParallelEmbedding)
        and not isinstance(module, ParallelLMHead)
        and NAMES.search(name.removesuffix(".base_layer"))
    ]
    if len(found) != 1:
        raise EmbeddingError(
            f"model: got {len(found)} input embeddings ({', '.join(name for name, _ in found)});"
            " allowed: exactly one table of token embeddings. Latent methods cannot run on this"
            " model; all others can, with the setting allow."
        )
    name, module = found[0]
    method = type(getattr(module, "quant_method", None)).__name__
    weight = getattr(module, "weight", None)
    if method != "UnquantizedEmbeddingMethod" or weight is None or weight.dtype not in TABLE_DTYPES:
        raise EmbeddingError(
            f"{name}: got an embedding table of {getattr(weight, 'dtype', None)} ({method});"
            " allowed: float32, bfloat16 or float16, not quantised, because rows of a quantised"
            " table cannot be mixed. Use a checkpoint that leaves the embedding unquantised."
        )
    return name, module


class InputEmbedding:
    """The model's input embedding with our op behind it.

    Parameters
    ----------
    max_tokens
        The most tokens of one forward pass.
    """

    def __init__(self, model: nn.Module, store: ConceptStore, max_tokens: int) -> None:
        self.name, module = find_input_embedding(model)
        ranks = getattr(module, "tp_size", 1)
        if ranks > 1 and not hasattr(module, "reduce_results"):
            raise EmbeddingError(
                f"{self.name}: got tensor_parallel_size {ranks}; allowed: 1 on this vLLM,"
                " whose embedding sums over its shards before tokenlens can mix. Update vLLM."
            )
        device = store.ids.device
        # [max_tokens] int64, read by captured graphs: never replaced
        self.pointers = torch.full((max_tokens,), -1, dtype=torch.int64, device=device)
        buffers = {
            "pointers": self.pointers,
            "weights": store.weights,
            "ids": store.ids,
        }
        for name, tensor in buffers.items():
            module.register_buffer(f"tokenlens_{name}", tensor, persistent=False)
        module.__class__ = _mixed(type(module))
        state: Any = module
        state.tokenlens_reduces = getattr(module, "reduce_results", True)
        if ranks > 1:
            # Mixing before the sum over shards costs no communication of its own.
            state.reduce_results = False


def _mixed(base: type[Any]) -> type[nn.Module]:
    """A subclass of the module's own class whose lookup is followed by the op."""

    class Mixed(base):  # type: ignore[misc]  # the base is the engine's
        def forward(self, input_: Tensor) -> Tensor:
            rows: Tensor = super().forward(input_)
            flat = rows.view(-1, rows.shape[-1])
            mixing = (
                self.tokenlens_pointers[: flat.shape[0]],
                self.tokenlens_ids,
                self.tokenlens_weights,
                self.weight,
                self.shard_indices.org_vocab_start_index,
                flat,
            )
            if flat.device.type == "cpu" and not torch.compiler.is_compiling():
                # What the op does, without the price of its dispatch.
                _mix_on_processor(*mixing)
            else:
                torch.ops.tokenlens_vllm.mix_rows(input_.reshape(-1), *mixing)
            if self.tp_size > 1 and self.tokenlens_reduces:
                from vllm.distributed import tensor_model_parallel_all_reduce

                group = getattr(self, "parallel_group", None)
                rows = (
                    tensor_model_parallel_all_reduce(rows)
                    if group is None
                    else group.all_reduce(rows)
                )
            return rows

    Mixed.__name__ = Mixed.__qualname__ = base.__name__
    return Mixed
