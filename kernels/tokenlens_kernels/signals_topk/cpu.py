"""``signals_topk`` on a processor: every logit is read once and exponentiated at most once.

The vocabulary is cut into tiles. The sums are taken per tile and then over the tiles, so a row's
result does not depend on how many rows come with it; the tiles with the largest maxima contain the
top entries, so nothing is sorted but them. Reading ``active`` on the host is free here, and only
here: this file never sees device tensors.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .entries import Parameters, add_noise, cut, probabilities_of, repeat_first

Array = NDArray[Any]
Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]

TILE = 64
# Rows are worked on in blocks of about this many logits, so that the passes over a block stay in
# the last-level cache. Several threads meet at the end of every pass, and on a busy machine they
# wait there for the one that lost its core: their blocks are larger, so that they meet less often.
_BLOCK_ELEMENTS = 2**18
_BLOCK_ELEMENTS_THREADED = 2**20
# Up to here, finding the largest tiles first takes longer than it saves.
_FEW_ELEMENTS = 2**16
# What a thread's last call worked in: fresh memory costs more than the passes over it.
_SCRATCH = threading.local()
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
    logits: Tensor, tile_maxima: Tensor | None, width: int
) -> tuple[Array, Array, Array]:
    """The ``width`` largest logits of each row in order, equal ones by lower id; their ids.

    Also the largest, ``[num_rows, 1]``: not a number if any logit is, +inf if any is, -inf if none
    is finite.
    """
    if tile_maxima is None:
        candidates, starts = logits.to(torch.float32), None
    else:
        candidates, starts = _candidates(logits, tile_maxima, width)
    # One more than is needed: what is equal to the last that stays shows that chance chose.
    values, places = candidates.topk(min(width + 1, candidates.shape[1]), dim=-1)
    highest = values.numpy()[:, :1]
    if _tied(values.numpy()):
        columns = torch.arange(candidates.shape[1])
        if starts is not None:
            columns = torch.from_numpy(starts).unsqueeze(-1) + torch.arange(TILE)
            columns = columns.flatten(1)[:, : candidates.shape[1]]
        places = _order_keys(candidates, columns).topk(width, dim=-1).indices
        values = candidates.gather(-1, places)
    best = places.numpy()[:, :width]
    if starts is not None:
        best = starts[np.arange(len(starts))[:, None], best // TILE] + best % TILE
    return values.numpy()[:, :width], best, highest


def _candidates(logits: Tensor, tile_maxima: Tensor, width: int) -> tuple[Tensor, Array]:
    """The tiles with the largest maxima side by side, and each one's first id."""
    vocab_size = logits.shape[1]
    whole = vocab_size // TILE
    count = min(width, whole)
    highest, tiles = tile_maxima[:, :whole].topk(min(width + 1, whole), dim=-1)
    if whole > width:
        if _tied(highest.numpy()[:, width - 1 :]):
            keys = _order_keys(tile_maxima[:, :whole], torch.arange(whole))
            tiles = keys.topk(count, dim=-1, sorted=False).indices
        tiles = tiles[:, :count]
    in_tiles = torch.unflatten(logits[:, : whole * TILE], 1, (whole, TILE))
    # Whole tiles, and the short one at the end whatever it holds
    candidates = in_tiles.gather(1, tiles.unsqueeze(-1).expand(-1, -1, TILE)).flatten(1)
    starts = tiles.numpy() * TILE
    if whole * TILE < vocab_size:
        candidates = torch.cat((candidates, logits[:, whole * TILE : vocab_size]), dim=1)
        # The place after the last tile is the short tile's.
        starts = np.pad(starts, ((0, 0), (0, 1)), constant_values=whole * TILE)
    return candidates.to(torch.float32), starts


def _tied(ordered: Array) -> bool:
    """Whether two neighbours are equal, where ``topk`` leaves their order to chance."""
    equal = ordered[:, 1:] == ordered[:, :-1]
    # Which of the -inf comes first does not matter: they are dead entries.
    return bool(equal.any()) and bool((equal & (ordered[:, 1:] > -np.inf)).any())


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
    statistics: bool = True,
) -> Outputs:
    """The op, see `tokenlens_kernels.signals_topk`."""
    per_row = (
        *(inverse_temperature, top_k, top_p, min_p, max_entries),
        *(noise_temperature, seed, position),
    )
    if len(active) and bool(active.all()):
        return _of_active(logits[:, :vocab_size], width, statistics, *per_row)
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
        results = _of_active(chosen, width, statistics, *(values[rows] for values in per_row))
        for output, result in zip(outputs, results, strict=True):
            output.index_copy_(0, rows, result)
    return outputs  # type: ignore[return-value]  # three and four make seven


def _of_active(logits: Tensor, width: int, statistics: bool, *per_row: Tensor) -> Outputs:
    """The op for rows that are all active, without padding."""
    parameters = Parameters(*(values.numpy()[:, None] for values in per_row))
    lowest, limit = int(parameters.top_k.min()), int(parameters.top_k.max())
    # Entries from the largest top-k on are dead: nobody looks for them.
    kept = width if lowest <= 0 else min(width, limit)
    tile_maxima = total = moment = None
    if statistics or lowest <= 0:
        tile_maxima, sums = _tile_sums(logits, per_row[0])
        total, moment = np.split(sums.numpy(), 2)
    elif logits.numel() > _FEW_ELEMENTS:
        # Filters that begin with a top-k renormalise: the whole vocabulary's mass cancels.
        tile_maxima = _reduce_tiles(logits, "max").to(torch.float32)
    values, ids, highest = _top_entries(logits, tile_maxima, kept)
    # Rows without a finite maximum divide by nothing; they are emptied in the end.
    with np.errstate(all="ignore"):
        return _entries_of(values, ids, highest, total, moment, parameters, width)


def _tile_sums(logits: Tensor, inverse_temperature: Tensor) -> tuple[Tensor, Tensor]:
    """Maxima ``[num_rows, number of tiles]``; mass, then first moment, ``[2 num_rows, 1]``."""
    num_rows, vocab_size = logits.shape
    inverse = inverse_temperature.unsqueeze(-1)
    elements = _BLOCK_ELEMENTS if torch.get_num_threads() == 1 else _BLOCK_ELEMENTS_THREADED
    block_rows = min(num_rows, max(1, elements // vocab_size))
    # Of each block: [block_rows, number of tiles]
    maxima, masses, moments = [], [], []
    for z, factor in zip(
        torch.split(logits, block_rows), torch.split(inverse, block_rows), strict=True
    ):
        shifted, mass = _scratch(*z.shape)
        if z.dtype != torch.float32:
            z = shifted.copy_(z)
        maxima.append(_reduce_tiles(z, "max"))
        torch.sub(z, maxima[-1].amax(-1, keepdim=True), out=shifted)
        torch.exp(shifted.mul_(factor).clamp_min_(_EXP_FLOOR), out=mass)
        masses.append(_reduce_tiles(mass, "sum"))
        moments.append(_reduce_tiles(mass.mul_(shifted), "sum"))
    sums = torch.cat(masses + moments).sum(-1, keepdim=True, dtype=torch.float64)
    return maxima[0] if len(maxima) == 1 else torch.cat(maxima), sums


def _scratch(num_rows: int, vocab_size: int) -> tuple[Tensor, Tensor]:
    """Two blocks of any content, the thread's own, kept for the next call."""
    held: tuple[Tensor, Tensor] | None = getattr(_SCRATCH, "held", None)
    if held is not None and held[0].shape[1] == vocab_size and len(held[0]) >= num_rows:
        return (held[0][:num_rows], held[1][:num_rows]) if len(held[0]) > num_rows else held
    with torch.inference_mode(False):
        held = torch.empty((num_rows, vocab_size)), torch.empty((num_rows, vocab_size))
    if num_rows * vocab_size <= _BLOCK_ELEMENTS_THREADED:
        _SCRATCH.held = held
    return held


def _entries_of(
    values: Array,
    ids: Array,
    highest: Array,
    total: Array | None,
    moment: Array | None,
    parameters: Parameters,
    width: int,
) -> Outputs:
    """The outputs from the sums ``[num_rows, 1]`` and the largest logits of each row."""
    if total is None or moment is None:
        logsumexp = entropy = max_probability = np.zeros_like(highest)
    else:
        log_total = np.log(total)
        logsumexp = highest.astype(np.float64) * parameters.inverse_temperature + log_total
        entropy = log_total - moment / total
        max_probability = 1.0 / total
    probabilities = probabilities_of(values, highest, total, parameters)
    ids = repeat_first(probabilities > 0, ids)
    most = np.where(parameters.top_k > 0, parameters.top_k, width)
    weights, weight_ids = cut(probabilities, ids, parameters.max_entries, most)
    if (parameters.noise_temperature > 0).any():
        weights, weight_ids = add_noise(weights, weight_ids, parameters)

    valid = np.isfinite(highest)
    if not valid.all():
        logsumexp = np.where(valid, logsumexp, np.nan)
        entropy, max_probability, probabilities, weights = (
            np.where(valid, values, 0.0)
            for values in (entropy, max_probability, probabilities, weights)
        )
        ids, weight_ids = (np.where(valid, values, 0) for values in (ids, weight_ids))
    facts = (logsumexp, entropy, max_probability)
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
