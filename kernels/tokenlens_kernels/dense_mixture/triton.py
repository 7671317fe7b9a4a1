"""``dense_mixture`` for devices: four launches, probabilities only in registers.

The first launch is that of `signals_topk`, the second merges its splits. The third makes the
probabilities of a stretch of the vocabulary and multiplies them with the table's rows; the
vocabulary is split so that small batches fill the device, and every split writes its partial sum.
The fourth adds the splits in order.

Blocks have the same shape at every batch size: a row's result does not depend on the others.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator"
# Kernels are written in Triton's language, whose values have no Python types.

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._launch import FP_FUSION, ceil_div, next_power_of_two, on_device_of
from ..signals_topk.triton import STATS_PER_SPLIT, merge_splits, tile_stats

_BLOCK_ROWS = 16
_BLOCK_VOCABULARY = 32
_BLOCK_HIDDEN = 128
_STAGES = 3
# Splits of the vocabulary make up for the programs that a small batch does not give.
_MAX_SPLITS = 16


@triton.jit(do_not_specialize=["num_splits"])
def row_scale_kernel(
    active_ptr,
    inverse_temperature_ptr,
    split_stats_ptr,
    # [num_rows, 2] float32: the maximum, and one over the mass (0 for a row that stays zero)
    row_ptr,
    num_splits,
    SPLITS_POW2: tl.constexpr,
    STATS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    tl.store(row_ptr + row * 2, 0.0)
    tl.store(row_ptr + row * 2 + 1, 0.0)
    if tl.load(active_ptr + row) == 0:
        return
    inverse = tl.load(inverse_temperature_ptr + row)
    highest, mass, _ = merge_splits(split_stats_ptr, row, num_splits, inverse, SPLITS_POW2, STATS)
    if (highest > -float("inf")) & (highest < float("inf")) & (mass == mass):
        tl.store(row_ptr + row * 2, highest)
        tl.store(row_ptr + row * 2 + 1, tl.div_rn(1.0, mass))


@triton.jit(do_not_specialize=["num_rows", "first", "last", "split_size"])
def dense_mixture_kernel(
    # [num_rows, row_stride]
    logits_ptr,
    # [shard_size, table_stride], row 0 is id `first`
    table_ptr,
    # [num_rows] float32
    inverse_temperature_ptr,
    # [num_rows, 2] float32
    row_ptr,
    # [num_splits, num_rows, hidden] float32
    partial_ptr,
    row_stride,
    table_stride,
    hidden,
    num_rows,
    first,
    last,
    split_size,
    ROWS: tl.constexpr,
    VOCABULARY: tl.constexpr,
    HIDDEN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * HIDDEN + tl.arange(0, HIDDEN)
    split = tl.program_id(2)
    has_row = rows < num_rows
    rows_64 = rows.to(tl.int64)
    highest = tl.load(row_ptr + rows_64 * 2, mask=has_row, other=0.0)
    share = tl.load(row_ptr + rows_64 * 2 + 1, mask=has_row, other=0.0)
    inverse = tl.load(inverse_temperature_ptr + rows, mask=has_row, other=1.0)
    # Rows that stay zero are not read: they, and their temperature, may be NaN.
    has_row = has_row & (share > 0.0)
    inverse = tl.where(has_row, inverse, 1.0)
    start = first + split * split_size
    stop = tl.minimum(start + split_size, last)
    total = tl.zeros([ROWS, HIDDEN], dtype=tl.float32)
    for base in range(start, stop, VOCABULARY):
        ids = base + tl.arange(0, VOCABULARY)
        inside = ids < stop
        z = tl.load(
            logits_ptr + rows_64[:, None] * row_stride + ids[None, :],
            mask=has_row[:, None] & inside[None, :],
            other=-float("inf"),
        ).to(tl.float32)
        p = tl.exp((z - highest[:, None]) * inverse[:, None]) * share[:, None]
        local = (ids - first).to(tl.int64)
        x = tl.load(
            table_ptr + local[:, None] * table_stride + columns[None, :],
            mask=inside[:, None] & (columns < hidden)[None, :],
            other=0.0,
        ).to(tl.float32)
        total = tl.dot(p, x, total, input_precision=PRECISION)
    out = partial_ptr + (split.to(tl.int64) * num_rows + rows_64[:, None]) * hidden
    tl.store(
        out + columns[None, :],
        total,
        mask=(rows < num_rows)[:, None] & (columns < hidden)[None, :],
    )


@triton.jit(do_not_specialize=["num_rows", "num_splits"])
def add_splits_kernel(
    partial_ptr,
    # [num_rows, hidden]
    out_ptr,
    hidden,
    scale,
    num_rows,
    num_splits,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < hidden
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for split in range(num_splits):
        part = partial_ptr + (split * num_rows + row) * hidden
        total += tl.load(part + columns, mask=inside, other=0.0)
    tl.store(out_ptr + row * hidden + columns, total * scale, mask=inside)


def _precision(device: torch.device) -> str:
    # Three passes of TF32 carry float32 probabilities through the matrix units of NVIDIA devices;
    # elsewhere the dot is done in float32.
    return "tf32x3" if device.type == "cuda" and torch.version.hip is None else "ieee"


def dense_mixture_out(
    logits: Tensor,
    table: Tensor,
    active: Tensor,
    inverse_temperature: Tensor,
    vocab_size: int,
    scale: float,
    shard_start: int,
    out: Tensor,
) -> None:
    """The op, see `tokenlens_kernels.dense_mixture`."""
    num_rows, hidden = out.shape
    if num_rows == 0 or hidden == 0:
        return
    active, inverse_temperature = active.contiguous(), inverse_temperature.contiguous()
    last = min(vocab_size, shard_start + table.shape[0])
    # Whole blocks a split, and splits that do not depend on the batch.
    num_blocks = max(1, ceil_div(max(0, last - shard_start), _BLOCK_VOCABULARY))
    split_size = ceil_div(num_blocks, _MAX_SPLITS) * _BLOCK_VOCABULARY
    num_partials = ceil_div(num_blocks * _BLOCK_VOCABULARY, split_size)
    row_facts = logits.new_empty((num_rows, 2), dtype=torch.float32)
    partial = logits.new_empty((num_partials, num_rows, hidden), dtype=torch.float32)
    with on_device_of(logits):
        _, split_stats = tile_stats(logits, active, inverse_temperature, vocab_size)
        row_scale_kernel[(num_rows,)](
            active.view(torch.uint8),
            inverse_temperature,
            split_stats,
            row_facts,
            split_stats.shape[1],
            SPLITS_POW2=next_power_of_two(split_stats.shape[1]),
            STATS=STATS_PER_SPLIT,
            num_warps=1,
            enable_fp_fusion=FP_FUSION,
        )
        dense_mixture_kernel[
            (ceil_div(num_rows, _BLOCK_ROWS), ceil_div(hidden, _BLOCK_HIDDEN), num_partials)
        ](
            logits,
            table,
            inverse_temperature,
            row_facts,
            partial,
            logits.stride(0),
            table.stride(0),
            hidden,
            num_rows,
            shard_start,
            last,
            split_size,
            ROWS=_BLOCK_ROWS,
            VOCABULARY=_BLOCK_VOCABULARY,
            HIDDEN=_BLOCK_HIDDEN,
            PRECISION=_precision(logits.device),
            num_warps=4,
            num_stages=_STAGES,
            enable_fp_fusion=FP_FUSION,
        )
        block = min(1024, max(128, next_power_of_two(hidden)))
        add_splits_kernel[(num_rows, ceil_div(hidden, block))](
            partial,
            out,
            hidden,
            scale,
            num_rows,
            num_partials,
            BLOCK=block,
            num_warps=4,
            enable_fp_fusion=FP_FUSION,
        )
