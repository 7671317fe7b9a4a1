"""``concept_mixture`` and ``concept_embedding`` for devices, one launch each.

Each program makes a stretch of one output row. Dead entries and entries outside the shard are
masked off, so a row with one live entry reads one row of the table.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator"
# Kernels are written in Triton's language, whose values have no Python types.

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import philox
from .._launch import FP_FUSION, ceil_div, next_power_of_two, on_device_of

# Handed to the kernel as compile-time arguments: the interpreter does not unwrap global constants.
NOISE = {
    "NORMAL_STREAM": philox.NORMAL,
    "UNIFORM_FLOOR": philox.UNIFORM_FLOOR,
    "UNIFORM_CEILING": philox.UNIFORM_CEILING,
}

# Entries whose rows are loaded before the first is needed.
_UNROLL = 8


@triton.jit(do_not_specialize=["shard_start", "shard_size", "width", "num_plans"])
def mixture_kernel(
    # [shard_size, table_stride]
    table_ptr,
    # [num_rows] int64, read only with IS_STREAM
    token_ids_ptr,
    # [num_rows] int64, read only with IS_STREAM
    plan_row_ptr,
    # [num_plans, width] int64
    ids_ptr,
    # [num_plans, width] float32
    weights_ptr,
    # [num_rows, hidden]
    out_ptr,
    table_stride,
    hidden,
    scale,
    shard_start,
    shard_size,
    width,
    num_plans,
    # Read only with ADDS: [num_vectors, hidden] float32, [num_plans] int64, float32, int64, int64
    vectors_ptr,
    vector_rows_ptr,
    noise_scale_ptr,
    noise_seed_ptr,
    noise_position_ptr,
    IS_STREAM: tl.constexpr,
    ADDS: tl.constexpr,
    NORMAL_STREAM: tl.constexpr,
    UNIFORM_FLOOR: tl.constexpr,
    UNIFORM_CEILING: tl.constexpr,
    BLOCK: tl.constexpr,
    UNROLL: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    out = out_ptr + row * hidden + columns
    plan = row
    if IS_STREAM:
        plan = tl.load(plan_row_ptr + row)
        if (plan < 0) | (plan >= num_plans):
            local = tl.load(token_ids_ptr + row) - shard_start
            stop = tl.where((local >= 0) & (local < shard_size), hidden, 0)
            x = tl.load(table_ptr + local * table_stride + columns, mask=columns < stop, other=0.0)
            tl.store(out, x.to(tl.float32) * scale, mask=columns < hidden)
            return

    total = tl.zeros([BLOCK], dtype=tl.float32)
    mass = 0.0
    for start in range(0, width, UNROLL):
        for j in tl.static_range(UNROLL):
            k = start + j
            weight = tl.load(weights_ptr + plan * width + k, mask=k < width, other=0.0)
            local = tl.load(ids_ptr + plan * width + k, mask=k < width, other=0) - shard_start
            # A scalar condition reaches the block through a number: the interpreter cannot combine
            # a scalar mask with a block's.
            stop = tl.where((local >= 0) & (local < shard_size), hidden, 0)
            stop = tl.where(weight != 0.0, stop, 0)
            x = tl.load(table_ptr + local * table_stride + columns, mask=columns < stop, other=0.0)
            total += weight * x.to(tl.float32)
            mass += weight
    if ADDS:
        vector = tl.load(vector_rows_ptr + plan)
        stop = tl.where(vector > 0, hidden, 0)
        total += tl.load(vectors_ptr + vector * hidden + columns, mask=columns < stop, other=0.0)
        deviation = tl.load(noise_scale_ptr + plan)
        if deviation != 0.0:
            counter = (
                (tl.load(noise_position_ptr + plan) << 32)
                | (NORMAL_STREAM << 24)
                | columns.to(tl.int64)
            )
            first, second, _, _ = tl.randint4x(tl.load(noise_seed_ptr + plan), counter)
            u = tl.uint_to_uniform_float(first)
            u = tl.minimum(tl.maximum(u, UNIFORM_FLOOR), UNIFORM_CEILING)
            angle = 6.283185307179586 * tl.uint_to_uniform_float(second)
            total += deviation * (tl.sqrt(-2.0 * tl.log(u)) * tl.cos(angle))
    if IS_STREAM:
        # Weights that are not finite are no mixture: the token's own embedding stands in.
        if (mass > -float("inf")) & (mass < float("inf")):
            tl.store(out, total * scale, mask=columns < hidden)
            return
        local = tl.load(token_ids_ptr + row) - shard_start
        stop = tl.where((local >= 0) & (local < shard_size), hidden, 0)
        x = tl.load(table_ptr + local * table_stride + columns, mask=columns < stop, other=0.0)
        total = x.to(tl.float32)
    tl.store(out, total * scale, mask=columns < hidden)


def warps_for(is_hip: bool) -> int:
    """A wavefront of ROCm has 64 lanes: half as many keep the loads 128 bits wide."""
    return 2 if is_hip else 4


def _block_for(hidden: int) -> int:
    return min(1024, max(128, next_power_of_two(hidden)))


def _launch(
    table: Tensor,
    token_ids: Tensor,
    plan_row: Tensor,
    ids: Tensor,
    weights: Tensor,
    scale: float,
    shard_start: int,
    out: Tensor,
    is_stream: bool,
    added: Sequence[Tensor] | None = None,
) -> None:
    num_rows, hidden = out.shape
    if num_rows == 0 or hidden == 0:
        return
    block = _block_for(hidden)
    with on_device_of(table):
        mixture_kernel[(num_rows, ceil_div(hidden, block))](
            table,
            token_ids,
            plan_row,
            ids.contiguous(),
            weights.contiguous(),
            out,
            table.stride(0),
            hidden,
            scale,
            shard_start,
            table.shape[0],
            ids.shape[1],
            ids.shape[0],
            *(added or [weights, ids, weights, ids, ids]),
            IS_STREAM=is_stream,
            ADDS=added is not None,
            **NOISE,
            BLOCK=block,
            UNROLL=_UNROLL,
            num_warps=warps_for(torch.version.hip is not None),
            enable_fp_fusion=FP_FUSION,
        )


def concept_mixture_out(
    table: Tensor, ids: Tensor, weights: Tensor, scale: float, shard_start: int, out: Tensor
) -> None:
    """The op, see `tokenlens_kernels.concept_mixture`."""
    _launch(table, ids, ids, ids, weights, scale, shard_start, out, is_stream=False)


def concept_mixture(
    table: Tensor,
    ids: Tensor,
    weights: Tensor,
    scale: float,
    shard_start: int,
    out_dtype: torch.dtype,
) -> Tensor:
    """The op, see `tokenlens_kernels.concept_mixture`."""
    out = table.new_empty((ids.shape[0], table.shape[1]), dtype=out_dtype)
    concept_mixture_out(table, ids, weights, scale, shard_start, out)
    return out


def concept_embedding_out(
    token_ids: Tensor,
    plan_row: Tensor,
    plan_ids: Tensor,
    plan_weights: Tensor,
    table: Tensor,
    scale: float,
    shard_start: int,
    out: Tensor,
    *added: Tensor | None,
) -> None:
    """The op, see `tokenlens_kernels.concept_embedding`."""
    given = [tensor for tensor in added if tensor is not None]
    _launch(
        table,
        token_ids.contiguous(),
        plan_row.contiguous(),
        plan_ids,
        plan_weights,
        scale,
        shard_start,
        out,
        is_stream=True,
        added=given or None,
    )
