"""An engine's vectors, for methods that feed more than concept tokens. Knows no engine."""

from collections.abc import Callable, Collection
from typing import Protocol

import torch
from torch import Tensor

from tokenlens.core.columns import DENSE, INVERSE_TEMPERATURE, Field
from tokenlens.core.proposal import Proposal
from tokenlens.core.rows import Rows
from tokenlens.spec.needs import Need

HIDDEN = Field("feed.hidden", "bool", False)  # the last hidden state is fed
REALIGN = Field("feed.realign", "bool", False)  # mapped into the space of the embeddings
SINGLE = Field("feed.single", "bool", False)  # by a matrix that was made in float32
RESCALE = Field("feed.rescale", "bool", False)  # with their mean norm
SHARE = Field("feed.share", "float", 1.0)  # of it, beside the mixture of the whole vocabulary
FIELDS = (HIDDEN, REALIGN, SINGLE, RESCALE, SHARE)

RIDGE = 1e-5

BLOCK_ROWS = 32_768
"""Rows of a table that are widened at once: a whole one would take gigabytes."""

Total = Callable[[Tensor], Tensor]
"""Sums a tensor over the shards of a table, in place or not; every rank is given the sum."""


def _alone(tensor: Tensor) -> Tensor:
    return tensor


def alignment_matrix(
    input_table: Tensor,
    output_table: Tensor,
    dtype: torch.dtype = torch.float64,
    total: Total = _alone,
) -> Tensor:
    """LatentMAS's map from hidden states to embeddings, by ridge regression.

    Parameters
    ----------
    input_table, output_table
        ``[vocab, hidden]``: the embeddings, and the rows of the language-model head. Of a sharded
        table, the shard's rows without padding.
    dtype
        In which sums are made and the system is solved. Where the vocabulary is hardly larger than
        the width, its condition number is beyond float32: other sums give another matrix.
    total
        Sums over shards.

    Returns
    -------
    Tensor
        ``[hidden, hidden]`` float32, ``W = (Wo' Wo + 1e-5 I)^-1 Wo' Wi``.
    """
    hidden, device = input_table.shape[1], input_table.device
    if device.type == "mps":
        # It has no float64.
        device = torch.device("cpu")
    square = torch.zeros(hidden, hidden, dtype=dtype, device=device)
    cross = torch.zeros_like(square)
    for start in range(0, len(output_table), BLOCK_ROWS):
        block = slice(start, start + BLOCK_ROWS)
        outputs = output_table[block].to(device, dtype)
        square += outputs.T @ outputs
        cross += outputs.T @ input_table[block].to(device, dtype)
    square, cross = total(square), total(cross)
    square.diagonal().add_(RIDGE)
    matrix: Tensor = torch.linalg.solve(square, cross)
    return matrix.to(input_table.device, torch.float32)


def mean_norm(table: Tensor, total: Total = _alone) -> Tensor:
    """The mean norm of a table's rows, a scalar float32 tensor; parameters as above."""
    return _mean(
        table, lambda rows: torch.linalg.vector_norm(rows, dim=1).sum(dtype=torch.float64), total
    )


def root_mean_square(table: Tensor, total: Total = _alone) -> Tensor:
    """Of the entries of a table, a scalar float32 tensor; parameters as above."""
    found = _mean(table, lambda rows: (rows**2).mean(dim=1).sum(dtype=torch.float64), total)
    return found.sqrt()


def _mean(table: Tensor, summed: Callable[[Tensor], Tensor], total: Total) -> Tensor:
    parts = [summed(rows.float()) for rows in torch.split(table, BLOCK_ROWS)]
    number = torch.tensor(len(table), dtype=torch.float64, device=table.device)
    found = total(torch.stack([torch.stack(parts).sum(), number]))
    return (found[0] / found[1]).float()


def rescaled(hidden: Tensor, norm: Tensor) -> Tensor:
    """``[num_rows, hidden]`` float32 at a norm; a hidden state of zero stays zero."""
    norms: Tensor = torch.linalg.vector_norm(hidden, dim=1, keepdim=True)
    return hidden * (norm / norms.clamp(min=1e-6))


def fused(hidden: Tensor, mixture: Tensor, share: Tensor) -> Tensor:
    """Both, ``[num_rows, hidden]``; at a share of 1 the hidden state, bit for bit."""
    return torch.where(share < 1, share * hidden + (1 - share) * mixture, hidden)


class EngineVectors(Protocol):
    """An engine's vectors. ``hosts``: those of ``Need.OF_ENGINE`` that it can serve."""

    hosts: Need
    hidden_size: int

    def dense(self, logits: Tensor, active: Tensor, inverse_temperature: Tensor) -> Tensor:
        """``[num_rows, hidden]`` float32: the mixture of the whole vocabulary."""

    def hidden(self) -> Tensor:
        """``[num_rows, hidden]`` float32: the last hidden state behind this step's logits."""

    def alignment(self, *, single: bool = False) -> tuple[Tensor, Tensor]:
        """LatentMAS's matrix ``[hidden, hidden]`` and the mean norm of the embedding's rows.

        ``single``: made in float32. Where no live request realigns, the matrix is not looked at.
        """


def before_step(vectors: EngineVectors, needs: Need, used: Collection[Field]) -> dict[str, Tensor]:
    """What is there before a step, hidden states first.

    For :class:`tokenlens.core.traced.GivenVectors`.

    Raises
    ------
    RuntimeError
        A product with the whole table, which is made in the middle of a step.
    """
    if Need.DENSE_MIXTURE in needs:
        raise RuntimeError("dense: got it in a step that is to be compiled; allowed: none")
    found = {"hidden": vectors.hidden()}
    if REALIGN in used or RESCALE in used:
        found["matrix"], found["norm"] = vectors.alignment()
    if SINGLE in used:
        found["single"] = vectors.alignment(single=True)[0]
    return found


def _hidden_states(vectors: EngineVectors, rows: Rows) -> Tensor:
    """``[num_rows, hidden]``: hidden states as each row is fed them."""
    hidden = vectors.hidden()
    if not (rows.uses(REALIGN) or rows.uses(RESCALE)):
        return hidden
    matrix, norm = vectors.alignment()
    if rows.uses(REALIGN):
        mapped = hidden @ matrix
        if rows.uses(SINGLE):
            theirs = hidden @ vectors.alignment(single=True)[0]
            mapped = torch.where(rows[SINGLE][:, None], theirs, mapped)
        hidden = torch.where(rows[REALIGN][:, None], mapped, hidden)
    return torch.where(rows[RESCALE][:, None], rescaled(hidden, norm), hidden)


def base_vectors(vectors: EngineVectors, logits: Tensor, rows: Rows, proposal: Proposal) -> Tensor:
    """The engine's vector for each row of a step, ``[num_rows, hidden]`` float32, 0 if none."""
    base = torch.zeros(logits.shape[0], vectors.hidden_size, device=logits.device)
    if Need.DENSE_MIXTURE in rows.needs:
        active = rows[DENSE] & proposal.latent
        dense = vectors.dense(logits, active, rows[INVERSE_TEMPERATURE])
        base = torch.where(active[:, None], dense, base)
    if Need.HIDDEN_STATE in rows.needs:
        hidden = _hidden_states(vectors, rows)
        active = rows[HIDDEN] & proposal.latent
        if rows.uses(SHARE):
            hidden = fused(hidden, base, rows[SHARE][:, None])
        base = torch.where(active[:, None], hidden, base)
    return base
