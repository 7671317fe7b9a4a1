"""Mixture inputs for the variant that is trained to read them.

Scope: from a teacher batch to input embeddings in which a share of the thinking tokens is replaced
by a mixture whose top entry is the teacher's token. The model learns that the top entry is the
choice and the rest is what else was considered.
"""

from __future__ import annotations

import torch
from data import Batch
from decode import Decoding, candidates
from model import TinyQwen3
from torch import Tensor

#: Share of the sequences that stay discrete, so that the model still reads plain tokens.
DISCRETE_SHARE = 0.2
#: Share of the other sequences whose mixtures carry no noise where the arg-max is the teacher's.
NOISELESS_SHARE = 0.35
TAU_RANGE = (0.3, 1.0)
FILTERS = Decoding(temperature=0.6)
_TINY = 1e-20


def conditional_gumbel(weights: Tensor, winner: Tensor, generator: torch.Generator) -> Tensor:
    """Draw ``ln weights + Gumbel`` given that entry ``winner`` has the largest value.

    The largest of all is a Gumbel variable whatever wins; the others are Gumbel variables cut off
    at it (top-down sampling of the Gumbel-max trick, Maddison et al. 2014).

    Parameters
    ----------
    weights : Tensor
        ``[..., entries]``, sum 1.
    winner : Tensor
        ``[...]`` int64.
    """

    def gumbel(shape) -> Tensor:
        return -(-torch.rand(shape, generator=generator).clamp_min(_TINY).log()).log()

    best = gumbel(winner.shape).unsqueeze(-1)
    log_weights = weights.clamp_min(_TINY).log()
    free = log_weights + gumbel(weights.shape)
    cut = -torch.log(torch.exp(-best) + torch.exp(-free))
    return cut.scatter(-1, winner.unsqueeze(-1), best).masked_fill(weights == 0, -torch.inf)


@torch.no_grad()
def mixture_inputs(model: TinyQwen3, batch: Batch, generator: torch.Generator) -> Tensor:
    """Return input embeddings ``[batch, length, hidden]`` with mixtures at thinking positions.

    The model's own distribution (of a first pass on the discrete tokens) gives the candidates.
    Where the teacher's token is not among them, the position stays discrete. No gradient flows
    into the embedding table: mixtures must keep meaning what the table says.
    """
    logits = model.lm_head(model(batch.ids)[:, :-1])
    ids, weights = candidates(logits, FILTERS)
    match = (ids == batch.ids[:, 1:].unsqueeze(-1)) & (weights > 0)
    winner = match.float().argmax(-1)
    perturbed = conditional_gumbel(weights, winner, generator)
    rows = batch.ids.shape[0]
    low, high = TAU_RANGE
    tau = low + (high - low) * torch.rand((rows, 1, 1), generator=generator)
    noisy = (perturbed / tau).softmax(-1)
    kind = torch.rand((rows, 1), generator=generator)
    plain = (kind < DISCRETE_SHARE + NOISELESS_SHARE) & (winner == 0)
    mixed = torch.where(plain.unsqueeze(-1), weights, noisy)
    latent = batch.thinking[:, 1:] & match.any(-1) & (kind >= DISCRETE_SHARE)
    table = model.model.embed_tokens.weight
    inputs = table[batch.ids]
    mixture = (mixed.unsqueeze(-1) * table[ids]).sum(-2)
    inputs[:, 1:] = torch.where(latent.unsqueeze(-1), mixture, inputs[:, 1:])
    return inputs
