"""The form of an engine's model, with layers that do next to nothing."""

import torch
from torch import nn

VOCAB, HIDDEN, LAYERS = 40, 8, 3


class Layer(nn.Module):
    """Adds one, and leaves a hidden state and a residual, or their sum alone."""

    def __init__(self, splits):
        super().__init__()
        self.splits = splits

    def forward(self, positions, states, residual):
        whole = states if residual is None else states + residual
        return (torch.ones_like(whole), whole) if self.splits else whole + 1


class Model(nn.Module):
    """The form of an engine's model: a list of layers beside the input embedding."""

    def __init__(self, splits=True):
        super().__init__()
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(VOCAB, HIDDEN)
        self.model.layers = nn.ModuleList(Layer(splits) for _ in range(LAYERS))
        self.splits = splits

    def forward(self, states):
        residual = None
        for layer in self.model.layers:
            left = layer(None, states, residual)
            states, residual = left if self.splits else (left, None)
        return states if residual is None else states + residual
