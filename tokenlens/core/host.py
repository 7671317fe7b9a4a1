"""What an engine may lend to methods that feed more than concept tokens. Knows no engine."""

from typing import Protocol

import torch
from torch import Tensor

from tokenlens.methods.base import DENSE, INVERSE_TEMPERATURE, Proposal, Rows
from tokenlens.methods.hidden_feedback import HIDDEN, REALIGN, RESCALE, align


class Host(Protocol):
    """An engine's vectors. ``hosts`` says which of `tokenlens.spec.NEEDS` it can serve."""

    hosts: frozenset[str]
    hidden_size: int

    def dense(self, logits: Tensor, active: Tensor, inverse_temperature: Tensor) -> Tensor:
        """``[num_rows, hidden]`` float32: the mixture of the whole vocabulary."""

    def hidden(self) -> Tensor:
        """``[num_rows, hidden]`` float32: the last hidden state behind this step's logits."""

    def alignment(self) -> tuple[Tensor, Tensor]:
        """LatentMAS's matrix ``[hidden, hidden]`` and the mean norm of the embedding's rows."""


def base_vectors(host: Host, logits: Tensor, rows: Rows, proposal: Proposal) -> Tensor:
    """What the engine lends to each row of a step, ``[num_rows, hidden]`` float32, 0 if nothing."""
    base = torch.zeros(len(logits), host.hidden_size, device=logits.device)
    if "dense" in rows.traits:
        active = rows[DENSE] & proposal.latent
        dense = host.dense(logits, active, rows[INVERSE_TEMPERATURE])
        base = torch.where(active[:, None], dense, base)
    if "hidden_state" in rows.traits:
        hidden = host.hidden()
        if "align" in rows.traits:
            matrix, norm = host.alignment()
            hidden = align(hidden, matrix, norm, rows[REALIGN], rows[RESCALE])
        active = rows[HIDDEN] & proposal.latent
        base = torch.where(active[:, None], hidden, base)
    return base
