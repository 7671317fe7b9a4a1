"""An engine's vectors, for methods that feed more than concept tokens. Knows no engine."""

from collections.abc import Collection
from typing import Protocol

import torch
from torch import Tensor

from tokenlens.core.columns import DENSE, INVERSE_TEMPERATURE, Field
from tokenlens.core.proposal import Proposal
from tokenlens.core.rows import Rows
from tokenlens.spec.needs import Need

HIDDEN = Field("feed.hidden", "bool", False)  # the last hidden state is fed
REALIGN = Field("feed.realign", "bool", False)  # mapped into the space of the embeddings
RESCALE = Field("feed.rescale", "bool", False)  # with their mean norm
FIELDS = (HIDDEN, REALIGN, RESCALE)

RIDGE = 1e-5


def alignment_matrix(input_table: Tensor, output_table: Tensor) -> tuple[Tensor, Tensor]:
    """LatentMAS's map from hidden states to embeddings, by ridge regression.

    Parameters
    ----------
    input_table, output_table
        ``[vocab, hidden]``: the embeddings, and the rows of the language-model head.

    Returns
    -------
    matrix, norm
        ``[hidden, hidden]`` float32, ``W = (Wo' Wo + 1e-5 I)^-1 Wo' Wi``, and the mean norm of the
        embeddings.
    """
    inputs, outputs = input_table.float(), output_table.float()
    square = outputs.T @ outputs
    square = square + RIDGE * torch.eye(len(square), device=square.device)
    return torch.linalg.solve(square, outputs.T @ inputs), inputs.norm(dim=1).mean()


def align(hidden: Tensor, matrix: Tensor, norm: Tensor, realign: Tensor, rescale: Tensor) -> Tensor:
    """Hidden states as inputs.

    Parameters
    ----------
    hidden
        ``[num_rows, hidden]`` float32.
    realign, rescale
        ``[num_rows]`` bool: through the matrix; to the norm. A hidden state of zero stays zero.
    """
    mapped = torch.where(realign[:, None], hidden @ matrix, hidden)
    scaled = mapped * (norm / mapped.norm(dim=1, keepdim=True).clamp(min=1e-6))
    return torch.where(rescale[:, None], scaled, mapped)


class Host(Protocol):
    """An engine's vectors. ``hosts``: those of ``Need.OF_ENGINE`` that it can serve."""

    hosts: Need
    hidden_size: int

    def dense(self, logits: Tensor, active: Tensor, inverse_temperature: Tensor) -> Tensor:
        """``[num_rows, hidden]`` float32: the mixture of the whole vocabulary."""

    def hidden(self) -> Tensor:
        """``[num_rows, hidden]`` float32: the last hidden state behind this step's logits."""

    def alignment(self) -> tuple[Tensor, Tensor]:
        """LatentMAS's matrix ``[hidden, hidden]`` and the mean norm of the embedding's rows."""


def lent(host: Host, needs: Need, used: Collection[Field]) -> tuple[Tensor, ...]:
    """What is there before a step, in the order of :class:`tokenlens.core.compiled.Lent`.

    Raises
    ------
    RuntimeError
        A product with the whole table, which is made in the middle of a step.
    """
    if Need.DENSE_MIXTURE in needs:
        raise RuntimeError("dense: got it in a step that is to be compiled; allowed: none")
    aligned = host.alignment() if REALIGN in used or RESCALE in used else ()
    return host.hidden(), *aligned


def base_vectors(host: Host, logits: Tensor, rows: Rows, proposal: Proposal) -> Tensor:
    """The engine's vector for each row of a step, ``[num_rows, hidden]`` float32, 0 if none."""
    base = torch.zeros(logits.shape[0], host.hidden_size, device=logits.device)
    if Need.DENSE_MIXTURE in rows.needs:
        active = rows[DENSE] & proposal.latent
        dense = host.dense(logits, active, rows[INVERSE_TEMPERATURE])
        base = torch.where(active[:, None], dense, base)
    if Need.HIDDEN_STATE in rows.needs:
        hidden = host.hidden()
        if rows.uses(REALIGN) or rows.uses(RESCALE):
            matrix, norm = host.alignment()
            hidden = align(hidden, matrix, norm, rows[REALIGN], rows[RESCALE])
        active = rows[HIDDEN] & proposal.latent
        base = torch.where(active[:, None], hidden, base)
    return base
