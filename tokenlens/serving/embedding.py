"""Mixtures inside an engine's input embedding: one op behind the lookup, fed by fixed buffers.

The op is opaque to ``torch.compile`` and reads only tensors at fixed addresses, so that a captured
graph replays it. Rows without a mixture keep the bits that the engine looked up. Knows no requests.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tokenlens_kernels import concept_embedding, concept_mixture
from tokenlens_kernels.concept_embedding.naive import addition
from torch import Tensor, nn

from tokenlens.core.engine_vectors import Total
from tokenlens.core.next_input import PER_LAYER
from tokenlens.errors import EmbeddingError
from tokenlens.serving.engine_vectors import HeadWatch, is_plain
from tokenlens.serving.store import ConceptStore
from tokenlens.serving.vectors import VectorStore

NAMES = re.compile(
    r"(^|\.)(embed_tokens|wte|word_embeddings|tok_embeddings|embed_in|embedding|embeddings)$"
)
ADDED = ("vectors", "vector_rows", "noise_scale", "noise_seed", "noise_position")
"""What entries add to their mixtures: see :class:`tokenlens.serving.vectors.VectorStore`."""

TABLE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


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
    *added: Tensor | None,
) -> None:
    """Overwrite the rows of a lookup that are fed a concept token, in place.

    Parameters
    ----------
    token_ids
        ``[num_tokens]`` integers, what was looked up.
    pointers
        ``[num_tokens]`` int64: the entry that a token's place is fed, -1 for its own embedding.
    ids, weights
        The store's entries; that of a discrete token is the token itself with weight 1. One with
        weights that are not finite leaves its row as it was looked up.
    table, shard_start
        ``[shard_size, hidden]`` and its first id.
    rows
        ``[num_tokens, hidden]``, zero for ids of another shard.
    added
        What entries add to their mixtures, in the order of ``ADDED``; ``None`` where no request
        may: the first shard adds it, and no other, because the shards' rows are summed.
    """
    if rows.device.type == "cpu":
        _mix_on_cpu(token_ids, pointers, ids, weights, table, shard_start, rows, *added)
        return
    Calls.count += 1
    # One launch; rows that point nowhere get the bits that they have.
    concept_embedding(
        token_ids.long(),
        pointers,
        ids,
        weights,
        table,
        shard_start=shard_start,
        out=rows,
        added=None if shard_start else [t for t in added if t is not None] or None,
    )


def _mix_on_cpu(
    token_ids: Tensor,
    pointers: Tensor,
    ids: Tensor,
    weights: Tensor,
    table: Tensor,
    shard_start: int,
    rows: Tensor,
    *added: Tensor | None,
) -> None:
    Calls.count += 1
    # Reading the mask on the host is free here, and only here. On arrays this small numpy's calls
    # are the cheaper ones.
    place = pointers.numpy()
    fed = np.flatnonzero(place >= 0)
    if len(fed) == 0:
        return
    entries = place[fed]
    shares = weights.numpy()[entries]
    if not np.isfinite(shares).all():
        # Such a concept token is no mixture: its row keeps what was looked up.
        sound = np.isfinite(shares).all(axis=1)
        fed, entries, shares = fed[sound], entries[sound], shares[sound]
        if len(fed) == 0:
            return
    given = () if added[0] is None or shard_start else added
    # The vectors' rows, and the noise's scales
    adds = any(of is not None and of.numpy()[entries].any() for of in given[1:3])
    mixture = concept_mixture(
        table,
        torch.from_numpy(ids.numpy()[entries]),
        torch.from_numpy(shares),
        shard_start=shard_start,
        out_dtype=torch.float32 if adds else None,
    )
    if adds:
        mixture = (mixture + addition(torch.from_numpy(entries), *given)).to(rows.dtype)
    if len(fed) == len(place):
        rows.copy_(mixture)
    else:
        rows.index_copy_(0, torch.from_numpy(fed), mixture)


_LIBRARY = torch.library.Library("tokenlens_serving", "DEF")
_LIBRARY.define(
    "mix_rows(Tensor token_ids, Tensor pointers, Tensor ids, Tensor weights, Tensor table,"
    " SymInt shard_start, Tensor(a!) rows, Tensor? vectors, Tensor? vector_rows,"
    " Tensor? noise_scale, Tensor? noise_seed, Tensor? noise_position) -> ()"
)
_LIBRARY.impl("mix_rows", _mix, "CompositeExplicitAutograd")
torch.library.register_fake("tokenlens_serving::mix_rows", lambda *_: None, lib=_LIBRARY)


def mix(module: Any, token_ids: Tensor, rows: Tensor) -> None:
    """Overwrite rows that a mixed module has looked up, in place, before shards are summed.

    Parameters
    ----------
    module
        With the buffers of :class:`InputEmbedding`, and the engine's own table and shard.
    token_ids, rows
        What was looked up, of any leading shape, and ``[..., hidden]``.
    """
    flat = rows.view(-1, rows.shape[-1])
    mixing = (
        module.tokenlens_pointers[: flat.shape[0]],
        module.tokenlens_ids,
        module.tokenlens_weights,
        module.weight,
        module.shard_indices.org_vocab_start_index,
        flat,
        *(getattr(module, f"tokenlens_{name}") for name in ADDED),
    )
    if flat.device.type == "cpu" and not torch.compiler.is_compiling():
        # What the op does, without the price of its dispatch.
        _mix_on_cpu(token_ids, *mixing)
    else:
        torch.ops.tokenlens_serving.mix_rows(token_ids.reshape(-1), *mixing)


def cannot(instead: str) -> str:
    """The end of an error: what goes on without mixtures."""
    return f"Latent methods cannot run on this model; all others can: name them {instead}."


@dataclass(frozen=True)
class EmbeddingLayout:
    """How an engine embeds tokens.

    Attributes
    ----------
    table, head
        The engine's classes of input embeddings, and of output embeddings, which may be the same.
        A subclass of torch's ``Embedding`` is never quantised.
    mixed
        Given the module's class: a subclass whose lookup is followed by :func:`mix`.
    instead
        How the operator names the methods that it allows, for the errors.
    check
        Given the name and the module that was found: refuses it with an :class:`EmbeddingError`.
    prepare
        Makes the module ready, before its class is changed.
    total
        Sums a tensor over the shards of the table: every rank is given the sum. ``None``: the
        engine lends no vectors, and is fed concept tokens alone.
    head_of
        Given the model and its table: what watches its head; ``None`` if nothing can.
    scale_of
        Given the same: what embeddings are multiplied by behind the table, see
        :class:`tokenlens.serving.engine_vectors.ServedVectors`.
    """

    table: type[nn.Module] | tuple[type[nn.Module], ...]
    head: type[nn.Module]
    mixed: Callable[[type[Any]], type[nn.Module]]
    instead: str
    check: Callable[[str, Any], None] = lambda name, module: None
    prepare: Callable[[Any], None] = lambda module: None
    total: Total | None = None
    head_of: Callable[[nn.Module, nn.Module], HeadWatch | None] = lambda model, table: None
    scale_of: Callable[[nn.Module, nn.Module], float | None] = lambda model, table: 1.0


def find_input_embedding(model: nn.Module, layout: EmbeddingLayout) -> tuple[str, nn.Module]:
    """The module that embeds the tokens of the text, found by its type and name.

    Raises
    ------
    EmbeddingError
        None, several that could be it, or one that cannot be mixed.
    """
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, layout.table)
        and not isinstance(module, layout.head)
        and NAMES.search(name.removesuffix(".base_layer"))
    ]
    if len(found) != 1:
        raise EmbeddingError(
            f"model: got {len(found)} input embeddings ({', '.join(name for name, _ in found)});"
            f" allowed: exactly one table of token embeddings. {cannot(layout.instead)}"
        )
    name, module = found[0]
    _check(name, module, layout)
    return name, module


def per_layer_embeddings(model: nn.Module, layout: EmbeddingLayout) -> list[nn.Module]:
    """Tables that the model looks its tokens up in beside the input embedding: none, or one.

    Raises
    ------
    EmbeddingError
        One that cannot be mixed.
    """
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, layout.table) and name.removesuffix(".base_layer").endswith(PER_LAYER)
    ]
    for name, module in found:
        _check(name, module, layout)
    return [module for _, module in found]


def _check(name: str, module: nn.Module, layout: EmbeddingLayout) -> None:
    method = type(getattr(module, "quant_method", None)).__name__
    weight = getattr(module, "weight", None)
    if not is_plain(module) or weight is None or weight.dtype not in TABLE_DTYPES:
        raise EmbeddingError(
            f"{name}: got an embedding table of {getattr(weight, 'dtype', None)} ({method});"
            " allowed: float32, bfloat16 or float16, not quantised, because rows of a quantised"
            " table cannot be mixed. Use a checkpoint that leaves the embedding unquantised."
            f" {cannot(layout.instead)}"
        )
    layout.check(name, module)


class InputEmbedding:
    """A model's input embedding with our op behind it, and behind per-layer embeddings.

    Parameters
    ----------
    max_tokens
        The most tokens of one forward pass.
    vectors
        What entries add; ``None`` where no request may have more than concept tokens.

    Raises
    ------
    EmbeddingError
        The model has no input embedding that can be mixed.
    """

    def __init__(
        self,
        model: nn.Module,
        layout: EmbeddingLayout,
        store: ConceptStore,
        max_tokens: int,
        vectors: VectorStore | None = None,
    ) -> None:
        self.name, module = find_input_embedding(model, layout)
        # [max_tokens] int64, read by captured graphs: never replaced
        self.pointers = torch.full((max_tokens,), -1, dtype=torch.int64, device=store.ids.device)
        buffers = {"pointers": self.pointers, "weights": store.weights, "ids": store.ids}
        added = dict.fromkeys(ADDED) if vectors is None else vectors.buffers
        # Found before any class is changed: an error leaves the model as it was.
        for table in (module, *per_layer_embeddings(model, layout)):
            layout.prepare(table)
            # Beside the input embedding a table is of another width, and is fed mixtures alone.
            own = added if table is module else dict.fromkeys(ADDED)
            for buffer, tensor in {**buffers, **own}.items():
                table.register_buffer(f"tokenlens_{buffer}", tensor, persistent=False)
            base = type(table)
            made = layout.mixed(base)
            made.__name__ = made.__qualname__ = base.__name__
            table.__class__ = made
