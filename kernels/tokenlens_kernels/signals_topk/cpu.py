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
    count = min(width, num_tiles)
    highest, tiles = tile_maxima.topk(count, dim=-1, sorted=False)
    if _cut_through_ties(tile_maxima, highest):
        keys = _order_keys(tile_maxima, torch.arange(num_tiles))
        tiles = keys.topk(count, dim=-1, sorted=False).indices
    columns = (tiles.unsqueeze(-1) * TILE + torch.arange(TILE)).flatten(1)
    candidates = logits.gather(1, columns.clamp_max(vocab_size - 1)).to(torch.float32)
    if vocab_size % TILE:
        candidates.masked_fill_(columns >= vocab_size, -torch.inf)
    values, best = candidates.topk(width, dim=-1, sorted=False)
    if _cut_through_ties(candidates, values):
        keys = _order_keys(candidates, columns)
        keys.masked_fill_(columns >= vocab_size, torch.iinfo(torch.int64).min)
        best = keys.topk(width, dim=-1, sorted=False).indices
        values = candidates.gather(-1, best)
    ids = columns.gather(-1, best)
    order = _order_keys(values, ids).sort(dim=-1, descending=True).indices
    return values.gather(-1, order), ids.gather(-1, order)


def _cut_through_ties(values: Tensor, kept: Tensor) -> bool:
    """Whether ``topk`` left out values that equal one it kept: then its choice is chance."""
    # Which of the -inf are kept does not matter: they are dead entries.
    last = kept.amin(-1, keepdim=True).clamp_min(torch.finfo(kept.dtype).min)
    return bool(((values >= last).sum(-1) > kept.shape[-1]).any())


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


def _of_active(
    logits: Tensor,
    width: int,
    inverse_temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    max_entries: Tensor,
    noise_temperature: Tensor,
    seed: Tensor,
    position: Tensor,
) -> Outputs:
    """The op for rows that are all active, without padding."""
    num_rows, vocab_size = logits.shape
    inverse = inverse_temperature.unsqueeze(-1)
    tile_maxima = logits.new_empty((num_rows, -(-vocab_size // TILE)), dtype=torch.float32)
    tile_mass = torch.empty_like(tile_maxima)
    tile_moment = torch.empty_like(tile_maxima)
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
        tile_mass[block] = _reduce_tiles(mass, "sum")
        tile_moment[block] = _reduce_tiles(mass.mul_(shifted), "sum")

    highest = tile_maxima.amax(-1, keepdim=True)
    total = tile_mass.to(torch.float64).sum(-1, keepdim=True)
    moment = tile_moment.to(torch.float64).sum(-1, keepdim=True)
    log_total = total.log()
    logsumexp = highest.double() * inverse.double() + log_total
    entropy = log_total - moment / total

    values, ids = _top_entries(logits, tile_maxima, vocab_size, width)
    shifted = (values - highest) * inverse
    probabilities = torch.where(shifted >= LIVE_FLOOR, shifted.double().exp() / total, 0.0)
    probabilities = filter_probabilities(probabilities, top_k, top_p, min_p)
    ids = repeat_first_id(probabilities > 0, ids)

    weights, weight_ids = cut_and_renormalise(probabilities, ids, max_entries)
    if bool((noise_temperature > 0).any()):
        counter = philox.offset(position.unsqueeze(-1), weight_ids, philox.GUMBEL)
        gumbel = philox.gumbel(seed.unsqueeze(-1), counter)
        weights, weight_ids = gumbel_softmax(weights, weight_ids, gumbel, noise_temperature)

    # The maximum is NaN if any logit is, +inf if any is, -inf if none is finite.
    valid = highest.isfinite()
    if not bool(valid.all()):
        logsumexp = torch.where(valid, logsumexp, torch.nan)
        total = torch.where(valid, total, torch.inf)
        entropy, probabilities, weights = (
            torch.where(valid, values, 0.0) for values in (entropy, probabilities, weights)
        )
        ids, weight_ids = (torch.where(valid, values, 0) for values in (ids, weight_ids))
    facts = (values.squeeze(-1).float() for values in (logsumexp, entropy, total.reciprocal()))
    return (*facts, probabilities.float(), ids, weights.float(), weight_ids)  # type: ignore[return-value]
