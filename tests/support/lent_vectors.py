"""Vectors of no model, for a core without an engine."""

import torch

from tokenlens.core.engine_vectors import EngineVectors
from tokenlens.spec.needs import Need

HIDDEN = 8


def table(vocab_size):
    """An embedding table, ``[vocab, hidden]``."""
    return torch.randn(vocab_size, HIDDEN, generator=torch.Generator().manual_seed(0))


class Lent(EngineVectors):
    """Dense mixtures of a random table, hidden states at will."""

    hosts = Need.OF_ENGINE
    hidden_size = HIDDEN

    def __init__(self, rows, vocab_size):
        self.table = table(vocab_size)
        self.states = torch.randn(rows, HIDDEN, generator=torch.Generator().manual_seed(1))

    def dense(self, logits, active, inverse_temperature):
        from tokenlens_kernels import dense_mixture

        return dense_mixture(
            logits,
            self.table,
            active=active,
            inverse_temperature=inverse_temperature,
            vocab_size=len(self.table),
        )

    def hidden(self):
        return self.states

    def alignment(self, *, single=False):
        return torch.eye(HIDDEN), torch.tensor(1.0)
