"""``signals_topk`` on a processor: every logit is read once and exponentiated once.

The vocabulary is cut into tiles. The sums are taken per tile and then over the tiles, so a row's
result does not depend on how many rows come with it; the tiles with the largest maxima contain the
top entries, so nothing is sorted but them. Reading ``active`` on the host is free here, and only
here: this file never sees device tensors.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import philox
from .naive import (
    LIVE_FLOOR,
    cut_and_renormalise,
    filter_probabilities,
    gumbel_softmax,
    repeat_first_id,
)

TILE = 128
# Rows are worked on in blocks of about this many logits: small enough for the passes over a block
# to stay in the last-level cache, large enough for the threads to meet rarely.
_BLOCK_ELEMENTS = 2**20
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
    logits: Tensor, rows: Tensor, tile_maxima: Tensor, vocab_size: int, width: int
) -> tuple[Tensor, Tensor]:
    """The ``width`` largest logits of each row in order, and their ids."""
    num_tiles = tile_maxima.shape[1]
    keys = _order_keys(tile_maxima, torch.arange(num_tiles))
    tiles = keys.topk(min(width, num_tiles), dim=-1, sorted=False).values
    tiles = 0xFFFFFFFF - (tiles & 0xFFFFFFFF)
    columns = (tiles.unsqueeze(-1) * TILE + torch.arange(TILE)).flatten(1)
    candidates = logits[rows.unsqueeze(-1), columns.clamp_max(vocab_size - 1)].to(torch.float32)
    keys = _order_keys(candidates, columns)
    keys.masked_fill_(columns >= vocab_size, torch.iinfo(torch.int64).min)
    best = keys.topk(width, dim=-1).indices
    return candidates.gather(-1, best), columns.gather(-1, best)


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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The op, see `tokenlens_kernels.signals_topk`."""
    num_rows = logits.shape[0]
    rows = active.nonzero().flatten()
    num_active = rows.shape[0]
    # Separate tensors: an op may not return views of one storage.
    outputs = (
        logits.new_zeros((num_rows,), dtype=torch.float32),
        logits.new_zeros((num_rows,), dtype=torch.float32),
        logits.new_zeros((num_rows,), dtype=torch.float32),
        logits.new_zeros((num_rows, width), dtype=torch.float32),
        logits.new_zeros((num_rows, width), dtype=torch.int64),
        logits.new_zeros((num_rows, width), dtype=torch.float32),
        logits.new_zeros((num_rows, width), dtype=torch.int64),
    )
    if num_active == 0:
        return outputs
    inverse = inverse_temperature[rows].unsqueeze(-1)

    tile_maxima = logits.new_empty((num_active, -(-vocab_size // TILE)), dtype=torch.float32)
    tile_mass = torch.empty_like(tile_maxima)
    tile_moment = torch.empty_like(tile_maxima)
    block_rows = min(num_active, max(1, _BLOCK_ELEMENTS // vocab_size))
    scratch = logits.new_empty((2, block_rows, vocab_size), dtype=torch.float32)
    for start in range(0, num_active, block_rows):
        block = slice(start, min(start + block_rows, num_active))
        z = logits[block] if num_active == num_rows else logits.index_select(0, rows[block])
        shifted, mass = scratch[:, : z.shape[0]].unbind(0)
        z = z[:, :vocab_size]
        if z.dtype != torch.float32:
            z = shifted.copy_(z)
        tile_maxima[block] = _reduce_tiles(z, "max")
        highest = tile_maxima[block].amax(-1, keepdim=True)
        torch.sub(z, highest, out=shifted).mul_(inverse[block]).clamp_min_(_EXP_FLOOR)
        torch.exp(shifted, out=mass)
        tile_mass[block] = _reduce_tiles(mass, "sum")
        tile_moment[block] = _reduce_tiles(mass.mul_(shifted), "sum")

    highest = tile_maxima.amax(-1, keepdim=True)
    # The maximum is NaN if any logit is, +inf if any is, -inf if none is finite.
    valid = highest.isfinite()
    total = tile_mass.to(torch.float64).sum(-1, keepdim=True)
    moment = tile_moment.to(torch.float64).sum(-1, keepdim=True)
    logsumexp = highest.double() * inverse.double() + total.log()
    entropy = total.log() - moment / total

    values, ids = _top_entries(logits, rows, tile_maxima, vocab_size, width)
    shifted = (values - highest) * inverse
    probabilities = torch.where(shifted >= LIVE_FLOOR, shifted.double().exp() / total, 0.0)
    probabilities = filter_probabilities(probabilities, top_k[rows], top_p[rows], min_p[rows])
    ids = repeat_first_id(probabilities > 0, ids)

    weights, weight_ids = cut_and_renormalise(probabilities, ids, max_entries[rows])
    tau = noise_temperature[rows]
    if bool((tau > 0).any()):
        counter = philox.offset(position[rows].unsqueeze(-1), weight_ids, philox.GUMBEL)
        gumbel = philox.gumbel(seed[rows].unsqueeze(-1), counter)
        weights, weight_ids = gumbel_softmax(weights, weight_ids, gumbel, tau)

    results = (
        torch.where(valid, logsumexp, torch.nan).squeeze(-1),
        torch.where(valid, entropy, 0.0).squeeze(-1),
        torch.where(valid, 1.0 / total, 0.0).squeeze(-1),
        torch.where(valid, probabilities, 0.0),
        torch.where(valid, ids, 0),
        torch.where(valid, weights, 0.0),
        torch.where(valid, weight_ids, 0),
    )
    for output, result in zip(outputs, results, strict=True):
        output.index_copy_(0, rows, result.to(output.dtype))
    return outputs
