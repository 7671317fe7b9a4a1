"""``logit_edit`` for devices, one launch.

A row is cut into stretches. The first program of a row makes its edits; the others only have work
if a token is forced. Repeated ids are summed by the lane that holds their first occurrence, so no
two lanes write one logit and no atomics are needed.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator"
# Kernels are written in Triton's language, whose values have no Python types.

import triton
import triton.language as tl
from torch import Tensor

from .._launch import FP_FUSION, ceil_div, on_device_of

_BLOCK = 4096
_CHUNK = 32


@triton.jit(
    do_not_specialize=[
        *("vocab_size", "columns", "max_slots", "max_edits", "delta_row_stride", "delta_stride")
    ]
)
def logit_edit_kernel(
    # [num_rows, row_stride]
    logits_ptr,
    # [num_rows] int64
    slots_ptr,
    # [max_slots, max_edits]
    edit_ids_ptr,
    # The same; its strides may be 0, where a row or all of it has one delta
    edit_deltas_ptr,
    # [max_slots] int64
    edit_counts_ptr,
    forced_ids_ptr,
    row_stride,
    delta_row_stride,
    delta_stride,
    vocab_size,
    columns,
    max_slots,
    max_edits,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    slot = tl.load(slots_ptr + row)
    if (slot < 0) | (slot >= max_slots):
        return
    logits = logits_ptr + row * row_stride
    forced = tl.load(forced_ids_ptr + slot)
    if (forced >= 0) & (forced < vocab_size):
        column = part * BLOCK + tl.arange(0, BLOCK)
        z = tl.where(column == forced, 0.0, -float("inf"))
        tl.store(logits + column, z, mask=column < columns)
        return
    if part > 0:
        return
    count = tl.minimum(tl.load(edit_counts_ptr + slot), max_edits)
    deltas = edit_deltas_ptr + slot * delta_row_stride
    lane = tl.arange(0, CHUNK)
    for start in range(0, count, CHUNK):
        k = start + lane
        token = tl.load(edit_ids_ptr + slot * max_edits + k, mask=k < count, other=-1)
        delta = tl.load(deltas + k * delta_stride, mask=k < count, other=0.0)
        total = tl.zeros([CHUNK], dtype=tl.float32)
        earlier = tl.zeros([CHUNK], dtype=tl.int32)
        for other_start in range(0, count, CHUNK):
            j = other_start + lane
            other = tl.load(edit_ids_ptr + slot * max_edits + j, mask=j < count, other=-2)
            added = tl.load(deltas + j * delta_stride, mask=j < count, other=0.0)
            same = (other[None, :] == token[:, None]) & (added[None, :] != 0.0)
            total += tl.sum(tl.where(same, added[None, :], 0.0), axis=1)
            earlier += tl.sum((same & (j[None, :] < k[:, None])).to(tl.int32), axis=1)
        writes = (token >= 0) & (token < vocab_size) & (delta != 0.0) & (earlier == 0)
        z = tl.load(logits + token, mask=writes, other=0.0).to(tl.float32)
        tl.store(logits + token, z + total, mask=writes)


def logit_edit(
    logits: Tensor,
    slots: Tensor,
    edit_ids: Tensor,
    edit_deltas: Tensor,
    edit_counts: Tensor,
    forced_ids: Tensor,
    vocab_size: int,
) -> None:
    """The op, see `tokenlens_kernels.logit_edit`."""
    num_rows, columns = logits.shape
    if num_rows == 0 or edit_ids.shape[0] == 0:
        return
    with on_device_of(logits):
        logit_edit_kernel[(num_rows, ceil_div(columns, _BLOCK))](
            logits,
            slots.contiguous(),
            edit_ids.contiguous(),
            edit_deltas,
            edit_counts.contiguous(),
            forced_ids.contiguous(),
            logits.stride(0),
            edit_deltas.stride(0),
            edit_deltas.stride(1),
            vocab_size,
            columns,
            edit_ids.shape[0],
            edit_ids.shape[1],
            BLOCK=_BLOCK,
            CHUNK=_CHUNK,
            num_warps=4,
            enable_fp_fusion=FP_FUSION,
        )
