"""``signals_topk`` on a processor: every logit is read once and exponentiated once.

The vocabulary is cut into tiles. The sums are taken per tile and then over the tiles, so a row's
result does not depend on how many rows come with it; the tiles with the largest maxima contain the
top entries, so nothing is sorted but them. Reading ``active`` on the host is free here, and only
here: this file never sees device tensors.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .entries import Parameters, add_noise, cut, probabilities_of, repeat_first

Array = NDArray[Any]
Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]

TILE = 128
# Rows are worked on in blocks of about this many logits, so that the passes over a block stay in
# the last-level cache. Several threads meet at the end of every pass, and on a busy machine they
# wait there for the one that lost its core: their blocks are larger, so that they meet less often.
_BLOCK_ELEMENTS = 2**20
_BLOCK_ELEMENTS_THREADED = 2**22
# float32 exp gives exactly 0 here; without the floor, -inf * 0 would make the entropy NaN.
_EXP_FLOOR = -104.0


def _reduce_tiles(values: Tensor, reduce: str) -> Tensor:
    """[rows, columns] -> [rows, number of tiles]; the last tile may be short."""
    columns = values.shape[1]
    whole = columns // TILE * TILE
    parts = []
    if whole:
        parts.append(values[:, :whole].view(values.shape[0], -1, TILE))
    if whole < columns:
        parts.append(values[:, whole:].unsqueeze(1))
    reduced = [part.amax(-1) if reduce == "max" else part.sum(-1) for part in parts]
    return reduced[0] if len(reduced) == 1 else torch.cat(reduced, dim=1)


def _order_keys(values: Tensor, index: Tensor) -> Tensor:
    """int64 keys that are ordered by value, and among equal values by the lower index."""
    # Adding zero turns -0.0 into 0.0; the exclusive or makes negative numbers ascend.
    bits = (values + 0.0).view(torch.int32)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.to(torch.int64) << 32) | (0xFFFFFFFF - index)


def _top_entries(
    logits: Tensor, tile_maxima: Tensor, vocab_size: int, width: int
) -> tuple[Tensor, Tensor]:
    """The ``width`` largest logits of each row in order, and their ids; equal ones by lower id."""
    num_tiles = tile_maxima.shape[1]
    # One more than is needed: what is equal to the last that stays shows that chance chose.
    highest, tiles = tile_maxima.topk(min(width + 1, num_tiles), dim=-1)
    if num_tiles > width:
        if _tied(highest.numpy()[:, width - 1 :]):
            keys = _order_keys(tile_maxima, torch.arange(num_tiles))
            tiles = keys.topk(width, dim=-1, sorted=False).indices
        tiles = tiles[:, :width]
    columns = (tiles.unsqueeze(-1) * TILE + torch.arange(TILE)).flatten(1)
    candidates = logits.gather(1, columns.clamp_max(vocab_size - 1)).to(torch.float32)
    if vocab_size % TILE:
        candidates.masked_fill_(columns >= vocab_size, -torch.inf)
    values, best = candidates.topk(min(width + 1, candidates.shape[1]), dim=-1)
    tied = _tied(values.numpy())
    values, best = values[:, :width], best[:, :width]
    if tied:
        keys = _order_keys(candidates, columns)
        keys.masked_fill_(columns >= vocab_size, torch.iinfo(torch.int64).min)
        best = keys.topk(width, dim=-1).indices
        values = candidates.gather(-1, best)
    return values, columns.gather(-1, best)


def _tied(ordered: Array) -> bool:
    """Whether two neighbours are equal, where ``topk`` leaves their order to chance."""
    # Which of the -inf comes first does not matter: they are dead entries.
    return bool(((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] > -np.inf)).any())


def signals_topk(
    logits: Tensor,
    active: Tensor,
    inverse_temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    max_entries: Tensor,
    noise_temperature: Tensor,
    seed: Tensor,
    position: Tensor,
    vocab_size: int,
    width: int,
) -> Outputs:
    """The op, see `tokenlens_kernels.signals_topk`."""
    per_row = (
        *(inverse_temperature, top_k, top_p, min_p, max_entries),
        *(noise_temperature, seed, position),
    )
    if len(active) and bool(active.all()):
        return _of_active(logits[:, :vocab_size], width, *per_row)
    num_rows = logits.shape[0]
    row, entries = (num_rows,), (num_rows, width)
    # Separate tensors: an op may not return views of one storage.
    outputs = (
        *(logits.new_zeros(row, dtype=torch.float32) for _ in range(3)),
        logits.new_zeros(entries, dtype=torch.float32),
        logits.new_zeros(entries, dtype=torch.int64),
        logits.new_zeros(entries, dtype=torch.float32),
        logits.new_zeros(entries, dtype=torch.int64),
    )
    rows = active.nonzero().flatten()
    if len(rows):
        chosen = logits[:, :vocab_size].index_select(0, rows)
        results = _of_active(chosen, width, *(values[rows] for values in per_row))
        for output, result in zip(outputs, results, strict=True):
            output.index_copy_(0, rows, result)
    return outputs  # type: ignore[return-value]  # three and four make seven


def _of_active(logits: Tensor, width: int, *per_row: Tensor) -> Outputs:
    """The op for rows that are all active, without padding."""
    num_rows, vocab_size = logits.shape
    inverse = per_row[0].unsqueeze(-1)
    tile_maxima = logits.new_empty((num_rows, -(-vocab_size // TILE)), dtype=torch.float32)
    # Mass and moment
    tile_sums = logits.new_empty((2, *tile_maxima.shape), dtype=torch.float32)
    elements = _BLOCK_ELEMENTS if torch.get_num_threads() == 1 else _BLOCK_ELEMENTS_THREADED
    block_rows = min(num_rows, max(1, elements // vocab_size))
    scratch = logits.new_empty((2, block_rows, vocab_size), dtype=torch.float32)
    for start in range(0, num_rows, block_rows):
        block = slice(start, min(start + block_rows, num_rows))
        z = logits[block]
        shifted, mass = scratch[:, : z.shape[0]].unbind(0)
        if z.dtype != torch.float32:
            z = shifted.copy_(z)
        tile_maxima[block] = _reduce_tiles(z, "max")
        highest = tile_maxima[block].amax(-1, keepdim=True)
        torch.sub(z, highest, out=shifted).mul_(inverse[block]).clamp_min_(_EXP_FLOOR)
        torch.exp(shifted, out=mass)
        tile_sums[0, block] = _reduce_tiles(mass, "sum")
        tile_sums[1, block] = _reduce_tiles(mass.mul_(shifted), "sum")

    parameters = Parameters(*(values.numpy()[:, None] for values in per_row))
    # Entries from the largest top-k on are dead: nobody looks for them.
    limits = parameters.top_k
    kept = width if limits.min() <= 0 else min(width, int(limits.max()))
    values, ids = _top_entries(logits, tile_maxima, vocab_size, kept)
    total, moment = tile_sums.to(torch.float64).sum(-1, keepdim=True).numpy()
    highest = tile_maxima.amax(-1, keepdim=True)
    # Rows without a finite maximum divide by nothing; they are emptied in the end.
    with np.errstate(all="ignore"):
        return _entries_of(
            values.numpy(), ids.numpy(), highest.numpy(), total, moment, parameters, width
        )


def _entries_of(
    values: Array,
    ids: Array,
    highest: Array,
    total: Array,
    moment: Array,
    parameters: Parameters,
    width: int,
) -> Outputs:
    """The outputs from the sums ``[num_rows, 1]`` and the largest logits of each row."""
    log_total = np.log(total)
    logsumexp = highest.astype(np.float64) * parameters.inverse_temperature + log_total
    entropy = log_total - moment / total
    probabilities = probabilities_of(values, highest, total, parameters)
    ids = repeat_first(probabilities > 0, ids)
    weights = cut(probabilities, parameters.max_entries)
    weight_ids = repeat_first(weights > 0, ids)
    if (parameters.noise_temperature > 0).any():
        weights, weight_ids = add_noise(weights, weight_ids, parameters)

    # The maximum is NaN if any logit is, +inf if any is, -inf if none is finite.
    valid = np.isfinite(highest)
    if not valid.all():
        logsumexp = np.where(valid, logsumexp, np.nan)
        total = np.where(valid, total, np.inf)
        entropy, probabilities, weights = (
            np.where(valid, values, 0.0) for values in (entropy, probabilities, weights)
        )
        ids, weight_ids = (np.where(valid, values, 0) for values in (ids, weight_ids))
    facts = (logsumexp, entropy, 1.0 / total)
    return (  # type: ignore[return-value]  # three and four make seven
        *(torch.from_numpy(values[:, 0].astype(np.float32)) for values in facts),
        *_widen(probabilities, ids, width),
        *_widen(weights, weight_ids, width),
    )


def _widen(weights: Array, ids: Array, width: int) -> tuple[Tensor, Tensor]:
    """Dead entries up to the width."""
    wide = np.zeros((len(weights), width), dtype=np.float32)
    wide[:, : weights.shape[1]] = weights
    wide_ids = np.empty((len(ids), width), dtype=np.int64)
    wide_ids[:] = ids[:, :1]
    wide_ids[:, : ids.shape[1]] = ids
    return torch.from_numpy(wide), torch.from_numpy(wide_ids)
