"""``signals_topk`` for devices, in two launches and one pass over the logits.

`tile_stats_kernel` reads every logit once: the maximum of each tile, and for each split of a row
the online sums that make log-sum-exp and entropy. `select_kernel` merges the splits, takes the
tiles with the largest maxima (they contain the exact top entries), reads those again, filters, adds
noise and sorts. A row is split by columns only, so its result does not depend on the batch.

Sixteen-bit values are widened right after each load; nothing is ever computed in them.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator"
# Kernels are written in Triton's language, whose values have no Python types.

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import philox
from .._launch import FP_FUSION, ceil_div, next_power_of_two, on_device_of
from .naive import LIVE_FLOOR

# Columns of a tile, whose maximum is kept, and tiles of a split, which one program reads.
TILE = 128
TILES_PER_SPLIT = 32
STATS_PER_SPLIT = 4

# Handed to the kernel as compile-time arguments: the interpreter does not unwrap global constants.
_SELECT_CONSTANTS = {
    "TILE": TILE,
    "STATS": STATS_PER_SPLIT,
    "LIVE_FLOOR": LIVE_FLOOR,
    "UNIFORM_FLOOR": philox.UNIFORM_FLOOR,
    "UNIFORM_CEILING": philox.UNIFORM_CEILING,
    "GUMBEL_STREAM": philox.GUMBEL,
    # Beneath the key of every logit, -inf included.
    "LOWEST_KEY": -(2**63) + 1,
}


PER_ROW = (
    *("active", "inverse_temperature", "top_k", "top_p", "min_p"),
    *("max_entries", "noise_temperature", "seed", "position"),
)
"""What there is one of a row: each may be a column of a table, and is read where it lies."""


@triton.jit
def order_keys(values, index):
    """int64 keys ordered by value, and among equal values by the lower index."""
    values = tl.where(values == 0.0, 0.0, values)
    bits = values.to(tl.int32, bitcast=True)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.to(tl.int64) << 32) | (0x7FFFFFFF - index).to(tl.int64)


@triton.jit
def key_index(keys):
    return 0x7FFFFFFF - (keys & 0x7FFFFFFF).to(tl.int32)


@triton.jit
def key_value(keys):
    ordered = (keys >> 32).to(tl.int32)
    bits = ordered ^ ((ordered >> 31) & 0x7FFFFFFF)
    return bits.to(tl.float32, bitcast=True)


@triton.jit(
    do_not_specialize=[
        *("vocab_size", "num_tiles", "num_splits", "active_stride", "inverse_temperature_stride")
    ]
)
def tile_stats_kernel(
    # [num_rows, row_stride]
    logits_ptr,
    # [num_rows] uint8
    active_ptr,
    # [num_rows] float32
    inverse_temperature_ptr,
    # [num_rows, num_tiles] float32
    tile_maxima_ptr,
    # [num_rows, num_splits, 4] float32: maximum, mass, moment, unused
    split_stats_ptr,
    row_stride,
    active_stride,
    inverse_temperature_stride,
    vocab_size,
    num_tiles,
    num_splits,
    TILES: tl.constexpr,
    TILE: tl.constexpr,
    STATS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    if tl.load(active_ptr + row * active_stride) == 0:
        return
    inverse = tl.load(inverse_temperature_ptr + row * inverse_temperature_stride)
    first = split * (TILES * TILE)
    tiles = tl.arange(0, TILES)
    columns = first + tiles[:, None] * TILE + tl.arange(0, TILE)[None, :]
    pointers = logits_ptr + row * row_stride + columns
    # The branch keeps the loads of whole splits 128 bits wide whatever the vocabulary's size.
    if first + TILES * TILE <= vocab_size:
        z = tl.load(pointers).to(tl.float32)
    else:
        z = tl.load(pointers, mask=columns < vocab_size, other=-float("inf")).to(tl.float32)

    maxima = tl.max(z, axis=1)
    tile = split * TILES + tiles
    tl.store(tile_maxima_ptr + row * num_tiles + tile, maxima, mask=tile < num_tiles)

    # The maximum may ignore a NaN and may be infinite; either makes the mass NaN.
    highest = tl.max(maxima, axis=0)
    reference = tl.where(highest == -float("inf"), 0.0, highest)
    shifted = (z - reference) * inverse
    mass = tl.exp(shifted)
    moment = tl.where(mass > 0.0, mass * shifted, 0.0)
    stats = split_stats_ptr + (row * num_splits + split) * STATS
    tl.store(stats, highest)
    tl.store(stats + 1, tl.sum(tl.sum(mass, axis=1), axis=0))
    tl.store(stats + 2, tl.sum(tl.sum(moment, axis=1), axis=0))


@triton.jit
def merge_splits(
    split_stats_ptr,
    row,
    num_splits,
    inverse,
    SPLITS_POW2: tl.constexpr,
    STATS: tl.constexpr,
):
    """Maximum, mass and moment of a row, relative to that maximum."""
    split = tl.arange(0, SPLITS_POW2)
    inside = split < num_splits
    stats = split_stats_ptr + (row * num_splits + split) * STATS
    maxima = tl.load(stats, mask=inside, other=-float("inf"))
    masses = tl.load(stats + 1, mask=inside, other=0.0)
    moments = tl.load(stats + 2, mask=inside, other=0.0)
    highest = tl.max(maxima, axis=0)
    # exp(-200) is 0, and unlike -inf it is still 0 when it is multiplied by an infinity's absence.
    shift = tl.maximum((maxima - highest) * inverse, -200.0)
    factor = tl.exp(shift)
    mass = tl.sum(masses * factor, axis=0)
    moment = tl.sum((moments + masses * shift) * factor, axis=0)
    return highest, mass, moment


# `vocab_size` is specialised here on being a multiple of 16: it bounds the masks of wide loads.
@triton.jit(
    do_not_specialize=[
        *("num_tiles", "num_splits", "width"),
        *(f"{name}_stride" for name in PER_ROW),
    ]
)
def select_kernel(
    logits_ptr,
    # Per row: uint8, then float32 or int64 as in the op.
    active_ptr,
    inverse_temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    max_entries_ptr,
    noise_temperature_ptr,
    seed_ptr,
    position_ptr,
    tile_maxima_ptr,
    split_stats_ptr,
    # [num_rows] float32
    logsumexp_ptr,
    entropy_ptr,
    max_probability_ptr,
    # [num_rows, width]
    probabilities_ptr,
    ids_ptr,
    weights_ptr,
    weight_ids_ptr,
    row_stride,
    active_stride,
    inverse_temperature_stride,
    top_k_stride,
    top_p_stride,
    min_p_stride,
    max_entries_stride,
    noise_temperature_stride,
    seed_stride,
    position_stride,
    vocab_size,
    num_tiles,
    num_splits,
    width,
    TILES_POW2: tl.constexpr,
    SPLITS_POW2: tl.constexpr,
    ENTRIES: tl.constexpr,
    TILE: tl.constexpr,
    STATS: tl.constexpr,
    LIVE_FLOOR: tl.constexpr,
    UNIFORM_FLOOR: tl.constexpr,
    UNIFORM_CEILING: tl.constexpr,
    GUMBEL_STREAM: tl.constexpr,
    LOWEST_KEY: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    rank = tl.arange(0, ENTRIES)
    entry = row * width + rank
    inside = rank < width
    if tl.load(active_ptr + row * active_stride) == 0:
        zeros = tl.zeros([ENTRIES], dtype=tl.float32)
        tl.store(logsumexp_ptr + row, 0.0)
        tl.store(entropy_ptr + row, 0.0)
        tl.store(max_probability_ptr + row, 0.0)
        tl.store(probabilities_ptr + entry, zeros, mask=inside)
        tl.store(ids_ptr + entry, zeros.to(tl.int64), mask=inside)
        tl.store(weights_ptr + entry, zeros, mask=inside)
        tl.store(weight_ids_ptr + entry, zeros.to(tl.int64), mask=inside)
        return

    inverse = tl.load(inverse_temperature_ptr + row * inverse_temperature_stride)
    highest, mass, moment = merge_splits(
        split_stats_ptr, row, num_splits, inverse, SPLITS_POW2, STATS
    )
    log_mass = tl.log(mass)
    entropy = log_mass - tl.div_rn(moment, mass)
    # A NaN fails every comparison. The count of entries carries the verdict to the blocks below.
    valid = (highest > -float("inf")) & (highest < float("inf")) & (tl.abs(entropy) < float("inf"))
    count = tl.where(valid, width, 0)

    tile = tl.arange(0, TILES_POW2)
    maxima = tl.load(
        tile_maxima_ptr + row * num_tiles + tile, mask=tile < num_tiles, other=-float("inf")
    )
    keys = tl.where(tile < num_tiles, order_keys(maxima, tile), LOWEST_KEY)
    chosen = tl.full([ENTRIES], LOWEST_KEY, tl.int64)
    for i in range(count):
        best = tl.max(keys, axis=0)
        chosen = tl.where(rank == i, best, chosen)
        keys = tl.where(keys == best, LOWEST_KEY, keys)

    # A slot without a tile points past the vocabulary.
    start = tl.where(chosen != LOWEST_KEY, key_index(chosen), num_tiles) * TILE
    columns = start[:, None] + tl.arange(0, TILE)[None, :]
    z = tl.load(
        logits_ptr + row * row_stride + columns, mask=columns < vocab_size, other=-float("inf")
    ).to(tl.float32)
    keys_2d = tl.where(columns < vocab_size, order_keys(z, columns), LOWEST_KEY)
    chosen = tl.full([ENTRIES], LOWEST_KEY, tl.int64)
    for i in range(count):
        best = tl.max(tl.max(keys_2d, axis=1), axis=0)
        chosen = tl.where(rank == i, best, chosen)
        keys_2d = tl.where(keys_2d == best, LOWEST_KEY, keys_2d)

    live = rank < count
    ids = tl.where(live, key_index(chosen), 0)
    shifted = (tl.where(live, key_value(chosen), -float("inf")) - highest) * inverse
    # Comparisons are false for the NaN of an infinite maximum, so such a row stays empty.
    live = live & (shifted >= LIVE_FLOOR)
    p = tl.div_rn(tl.where(live, tl.exp(shifted), 0.0), mass)

    k = tl.load(top_k_ptr + row * top_k_stride)
    p = tl.where(rank < tl.where(k > 0, k, ENTRIES), p, 0.0)
    p = tl.div_rn(p, tl.where(k > 0, tl.sum(p, axis=0), 1.0))
    nucleus = tl.load(top_p_ptr + row * top_p_stride)
    mass_before = tl.cumsum(p, axis=0) - p
    p = tl.where(mass_before <= tl.where(nucleus >= 1.0, 2.0, nucleus), p, 0.0)
    p = tl.div_rn(p, tl.sum(p, axis=0))
    p = tl.where(p >= tl.load(min_p_ptr + row * min_p_stride) * tl.max(p, axis=0), p, 0.0)
    p = tl.div_rn(p, tl.sum(p, axis=0))
    p = tl.where(rank < count, p, 0.0)
    first_id = tl.sum(tl.where(rank == 0, ids, 0), axis=0)
    ids = tl.where(p > 0.0, ids, first_id)
    p_ids = ids

    w = tl.where(rank < tl.load(max_entries_ptr + row * max_entries_stride), p, 0.0)
    w = tl.div_rn(w, tl.where(count > 0, tl.sum(w, axis=0), 1.0))
    tau = tl.load(noise_temperature_ptr + row * noise_temperature_stride)
    if tau > 0.0:
        counter = (
            (tl.load(position_ptr + row * position_stride) << 32)
            | (GUMBEL_STREAM << 24)
            | ids.to(tl.int64)
        )
        u = tl.rand(tl.load(seed_ptr + row * seed_stride), counter)
        u = tl.minimum(tl.maximum(u, UNIFORM_FLOOR), UNIFORM_CEILING)
        gumbel = -tl.log(-tl.log(u))
        score = tl.div_rn(tl.log(tl.where(w > 0.0, w, 1.0)) + gumbel, tau)
        score = tl.where(w > 0.0, score, -float("inf"))
        relative = score - tl.max(score, axis=0)
        w = tl.where(relative >= LIVE_FLOOR, tl.exp(relative), 0.0)
        w = tl.div_rn(w, tl.where(count > 0, tl.sum(w, axis=0), 1.0))
    # Whatever the parameters were, no weight leaves that is not a number: a number carries the
    # verdict to the blocks.
    total = tl.sum(w, axis=0)
    valid = valid & (total > 0.5) & (total < 1.5)
    count = tl.where(valid, width, 0)
    live = rank < count
    p, w = tl.where(live, p, 0.0), tl.where(live, w, 0.0)
    p_ids, ids = tl.where(live, p_ids, 0), tl.where(live, ids, 0)
    tl.store(logsumexp_ptr + row, tl.where(valid, highest * inverse + log_mass, float("nan")))
    tl.store(entropy_ptr + row, tl.where(valid, entropy, 0.0))
    tl.store(max_probability_ptr + row, tl.where(valid, tl.div_rn(1.0, mass), 0.0))
    tl.store(probabilities_ptr + entry, p, mask=inside)
    tl.store(ids_ptr + entry, p_ids.to(tl.int64), mask=inside)
    # Entries are few: the place of each is the number of entries that come before it.
    before = (w[None, :] > w[:, None]) | (
        (w[None, :] == w[:, None]) & (rank[None, :] < rank[:, None])
    )
    place = tl.sum(before.to(tl.int32), axis=1)
    first_id = tl.sum(tl.where(place == 0, ids, 0), axis=0)
    ids = tl.where(w > 0.0, ids, first_id)
    tl.store(weights_ptr + row * width + place, w, mask=inside)
    tl.store(weight_ids_ptr + row * width + place, ids.to(tl.int64), mask=inside)


def tile_stats(
    logits: Tensor, active: Tensor, inverse_temperature: Tensor, vocab_size: int
) -> tuple[Tensor, Tensor]:
    """Maxima of the tiles and sums of the splits; rows that are not active stay unwritten."""
    num_rows = logits.shape[0]
    num_tiles = ceil_div(vocab_size, TILE)
    num_splits = ceil_div(num_tiles, TILES_PER_SPLIT)
    tile_maxima = logits.new_empty((num_rows, num_tiles), dtype=torch.float32)
    split_stats = logits.new_empty((num_rows, num_splits, STATS_PER_SPLIT), dtype=torch.float32)
    tile_stats_kernel[(num_rows, num_splits)](
        logits,
        active.view(torch.uint8),
        inverse_temperature,
        tile_maxima,
        split_stats,
        logits.stride(0),
        active.stride(0),
        inverse_temperature.stride(0),
        vocab_size,
        num_tiles,
        num_splits,
        TILES=TILES_PER_SPLIT,
        TILE=TILE,
        STATS=STATS_PER_SPLIT,
        num_warps=4,
        enable_fp_fusion=FP_FUSION,
    )
    return tile_maxima, split_stats


def entries_for(width: int) -> int:
    """Slots of the selection: few sizes, so that few kernels are compiled."""
    return max(8, next_power_of_two(width))


def warps_for(entries: int) -> int:
    return 4 if entries <= 16 else 8


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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The op, see `tokenlens_kernels.signals_topk`; the statistics cost no pass here."""
    num_rows = logits.shape[0]
    logsumexp, entropy, max_probability = (
        logits.new_empty((num_rows,), dtype=torch.float32) for _ in range(3)
    )
    probabilities, weights = (
        logits.new_empty((num_rows, width), dtype=torch.float32) for _ in range(2)
    )
    ids, weight_ids = (logits.new_empty((num_rows, width), dtype=torch.int64) for _ in range(2))
    outputs = (logsumexp, entropy, max_probability, probabilities, ids, weights, weight_ids)
    if num_rows == 0:
        return outputs
    per_row = (
        *(active.view(torch.uint8), inverse_temperature, top_k, top_p, min_p),
        *(max_entries, noise_temperature, seed, position),
    )
    with on_device_of(logits):
        tile_maxima, split_stats = tile_stats(logits, active, inverse_temperature, vocab_size)
        num_tiles, num_splits = tile_maxima.shape[1], split_stats.shape[1]
        entries = entries_for(width)
        select_kernel[(num_rows,)](
            logits,
            *per_row,
            tile_maxima,
            split_stats,
            *outputs,
            logits.stride(0),
            *(tensor.stride(0) for tensor in per_row),
            vocab_size,
            num_tiles,
            num_splits,
            width,
            TILES_POW2=next_power_of_two(num_tiles),
            SPLITS_POW2=next_power_of_two(num_splits),
            ENTRIES=entries,
            **_SELECT_CONSTANTS,
            num_warps=warps_for(entries),
            enable_fp_fusion=FP_FUSION,
        )
    return outputs
