"""``signals_topk`` on a CPU: every logit is read once and exponentiated at most once.

The vocabulary is cut into tiles. The sums are taken per tile and then over the tiles, so a row's
result does not depend on how many rows come with it; the tiles with the largest maxima contain the
top entries, so nothing is sorted but them. Reading ``active`` on the host is free here, and only
here: this file never sees device tensors.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .entries import Plan, repeat_first

if TYPE_CHECKING:
    from collections.abc import Sequence

Array = NDArray[Any]
Ints = NDArray[np.int64]
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
# Statistics that nobody reads.
_NOTHING: Array = np.zeros((1, 1))


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
    if not np.count_nonzero(equal):
        return False
    # Which of the -inf comes first does not matter: they are dead entries.
    return bool(np.count_nonzero(equal & (ordered[:, 1:] > -np.inf)))


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
    parameters = (inverse_temperature, top_k, top_p, min_p, max_entries, noise_temperature, seed)
    wanted, positions = active.numpy(), position.numpy()[:, None]
    count = np.count_nonzero(wanted)
    if not count:
        nothing = np.zeros((0, 1))
        none = np.zeros((0, width)), np.zeros((0, width), dtype=np.int64)
        return _outputs((nothing,) * 3, (none, none), width, len(wanted), slice(0))
    if logits.shape[1] != vocab_size:
        logits = logits[:, :vocab_size]
    rows: Ints | slice = slice(None)
    if count < len(wanted):
        rows = np.flatnonzero(wanted)
        logits = logits.index_select(0, torch.from_numpy(rows))
    plan = Plan([values.numpy()[rows, None] for values in parameters], width)
    # numpy would warn of what a device does silently; a last look at the weights tells.
    with np.errstate(all="ignore"):
        return _of_active(logits, plan, positions[rows], statistics, len(wanted), rows)


def _of_active(
    logits: Tensor,
    plan: Plan,
    position: Ints,
    statistics: bool,
    num_rows: int,
    rows: Ints | slice,
) -> Outputs:
    """The op for rows that are all active, without padding, at their places among all rows."""
    tile_maxima = total = moment = None
    if statistics or plan.needs_mass:
        tile_maxima, sums = _tile_sums(logits, plan.inverse_temperature)
        total, moment = np.split(sums.numpy(), 2)
    elif logits.numel() > _FEW_ELEMENTS:
        # Filters that begin with a top-k renormalise: the whole vocabulary's mass cancels.
        tile_maxima = _reduce_tiles(logits, "max").to(torch.float32)
    values, ids, highest = _top_entries(logits, tile_maxima, plan.kept)
    valid = np.isfinite(highest)
    some_invalid = np.count_nonzero(valid) < len(valid)
    if some_invalid:
        # Of numbers that can be computed with; such rows are emptied in the end.
        values, highest = np.where(valid, values, 0.0), np.where(valid, highest, 0.0)
        if total is not None and moment is not None:
            total, moment = np.where(valid, total, 1.0), np.where(valid, moment, 0.0)
    logsumexp = entropy = max_probability = _NOTHING
    if total is not None and moment is not None:
        log_total = np.log(total)
        logsumexp = highest.astype(np.float64) * plan.inverse_temperature + log_total
        entropy = log_total - moment / total
        max_probability = 1.0 / total
    probabilities = plan.probabilities(values, highest, total)
    ids = repeat_first(probabilities > 0, ids)
    weights, weight_ids = plan.add_noise(*plan.cut(probabilities, ids), position)
    # Whatever the parameters were, no weight leaves that is not a number.
    mass = weights.sum(axis=1, keepdims=True)
    valid &= (mass > 0.5) & (mass < 1.5) & np.isfinite(entropy)
    if np.count_nonzero(valid) < len(valid):
        logsumexp = np.where(valid, logsumexp, np.nan)
        entropy, max_probability, probabilities, weights = (
            np.where(valid, values, 0.0)
            for values in (entropy, max_probability, probabilities, weights)
        )
        ids, weight_ids = (np.where(valid, values, 0) for values in (ids, weight_ids))
    facts = (logsumexp, entropy, max_probability)
    entries = ((probabilities, ids), (weights, weight_ids))
    return _outputs(facts, entries, plan.width, num_rows, rows)


def _outputs(
    facts: Sequence[Array],
    entries: Sequence[tuple[Array, Array]],
    width: int,
    num_rows: int,
    rows: Ints | slice,
) -> Outputs:
    """The op's outputs, in tensors of their own: an op may not return views of one storage."""
    found: list[Array] = []
    for values in facts:
        fact = np.zeros(num_rows, dtype=np.float32)
        if values is not _NOTHING:
            fact[rows] = values[:, 0]
        found.append(fact)
    for weights, ids in entries:
        wide = np.zeros((num_rows, width), dtype=np.float32)
        wide_ids = np.zeros((num_rows, width), dtype=np.int64)
        kept = ids.shape[1]
        wide[rows, :kept] = weights
        wide_ids[rows, kept:] = ids[:, :1]
        wide_ids[rows, :kept] = ids
        found += [wide, wide_ids]
    return tuple(map(torch.from_numpy, found))  # type: ignore[return-value]  # seven


def _tile_sums(logits: Tensor, inverse_temperature: Array) -> tuple[Tensor, Tensor]:
    """Maxima ``[num_rows, number of tiles]``; mass, then first moment, ``[2 num_rows, 1]``."""
    num_rows, vocab_size = logits.shape
    inverse = torch.from_numpy(inverse_temperature)
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
