"""Embeds a stream of tokens in which some positions are fed a mixture instead of their token.

This is `concept_mixture` in the form that a serving engine's embedding layer needs: one row a token
of the forward pass, prompt chunks and discrete requests included, and a plan that only the latent
positions point into. It does not know requests or slots.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .._registration import register
from .._tables import check_entries, check_out, check_table

if TYPE_CHECKING:
    from collections.abc import Sequence


def concept_embedding(
    # [num_tokens] int64
    token_ids: Tensor,
    # [num_tokens] int64
    plan_row: Tensor,
    # [num_plans, width] int64
    plan_ids: Tensor,
    # [num_plans, width] float32
    plan_weights: Tensor,
    # [shard_size, hidden]
    table: Tensor,
    *,
    scale: float = 1.0,
    shard_start: int = 0,
    out_dtype: torch.dtype | None = None,
    # [num_tokens, hidden]
    out: Tensor | None = None,
    added: Sequence[Tensor] | None = None,
) -> Tensor:
    """Embed each token: its row of the table, or the mixture of the plan that it points to.

    Plain tokens are ``table[id] * scale`` bit for bit (``table[id]`` with a scale of 1).

    Parameters
    ----------
    token_ids : Tensor
        [num_tokens] int64, ids of the whole vocabulary; ids outside the shard give zeros. Where
        ``plan_row`` points to a plan, the id is not looked at, unless a weight of the plan is not
        finite: such a plan is no mixture, and the token is embedded as itself.
    plan_row : Tensor
        [num_tokens] int64, -1 for a plain token, else the row of the plan, below ``num_plans``.
        Values are not checked: they live on the device.
    plan_ids, plan_weights : Tensor
        [num_plans, width] int64 and float32, as ``ids`` and ``weights`` of `concept_mixture`.
    table, scale, shard_start, out_dtype, out
        As in `concept_mixture`.
    added : sequence of five tensors
        What plans add to their mixtures, in float32 before they are rounded: ``vectors``
        [num_vectors, hidden] float32; ``vector_rows`` [num_plans] int64, 0 for none;
        ``noise_scale`` [num_plans] float32, the standard deviation of Gaussian noise, 0 for none;
        ``noise_seed`` and ``noise_position`` [num_plans] int64, which it is drawn from. ``scale``
        must be 1 beside it.

    Returns
    -------
    Tensor
        [num_tokens, hidden]; ``out`` if it was given.

    Raises
    ------
    ValueError
        If a shape or dtype is not as described.
    """
    check_table(table)
    if token_ids.dim() != 1 or token_ids.dtype != torch.int64:
        raise ValueError(
            f"token_ids: got shape {tuple(token_ids.shape)} and dtype {token_ids.dtype}, allowed is"
            " [num_tokens] of torch.int64"
        )
    if plan_row.shape != token_ids.shape or plan_row.dtype != torch.int64:
        raise ValueError(
            f"plan_row: got shape {tuple(plan_row.shape)} and dtype {plan_row.dtype}, allowed is"
            f" {tuple(token_ids.shape)} of torch.int64 (one a token)"
        )
    check_entries("plan_ids", plan_ids, "plan_weights", plan_weights, "[num_plans, width]")
    if added is not None:
        _check_added(table, plan_ids, scale, added)
    check_out(table, token_ids.shape[0], out_dtype, out)
    if out is None:
        out = table.new_empty((token_ids.shape[0], table.shape[1]), dtype=out_dtype or table.dtype)
    torch.ops.tokenlens.concept_embedding_out(
        token_ids, plan_row, plan_ids, plan_weights, table, scale, shard_start, out, *(added or ())
    )
    return out


def _check_added(table: Tensor, plan_ids: Tensor, scale: float, added: Sequence[Tensor]) -> None:
    vectors, *columns = added
    dtypes = (torch.int64, torch.float32, torch.int64, torch.int64)
    plans = plan_ids.shape[:1]
    if (
        scale != 1.0
        or vectors.dim() != 2
        or vectors.shape[1:] != table.shape[1:]
        or vectors.dtype != torch.float32
        or not vectors.is_contiguous()
        or len(columns) != len(dtypes)
        or any(c.shape != plans or c.dtype != d for c, d in zip(columns, dtypes))
    ):
        got = [(tuple(tensor.shape), tensor.dtype) for tensor in added]
        raise ValueError(
            f"added: got {got} and a scale of {scale}, allowed is a scale of 1, contiguous"
            f" [num_vectors, {table.shape[1]}] of torch.float32, and [{plans[0]}] of each of"
            f" {dtypes}"
        )


def _cpu_out(*arguments: Any) -> None:
    from . import cpu

    # What the schema's five optional arguments are is left out where they are not given.
    (*given, out), added = arguments[:8], arguments[8:]
    out.copy_(cpu.concept_embedding(*given, out.dtype, *added))


def _device_out(*arguments: Any) -> None:
    from ..concept_mixture import triton

    triton.concept_embedding_out(*arguments)


def _fake_out(*arguments: Any) -> None:
    return None


register(
    "concept_embedding_out(Tensor token_ids, Tensor plan_row, Tensor plan_ids, Tensor plan_weights,"
    " Tensor table, float scale, SymInt shard_start, Tensor(a!) out,"
    " Tensor? vectors=None, Tensor? vector_rows=None, Tensor? noise_scale=None,"
    " Tensor? noise_seed=None, Tensor? noise_position=None) -> ()",
    cpu=_cpu_out,
    device=_device_out,
    fake=_fake_out,
)
