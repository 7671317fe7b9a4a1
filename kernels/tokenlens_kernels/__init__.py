"""The tensor operations that latent decoding needs at every step, one op a folder.

Each folder holds ``naive.py`` (the truth: plain torch, slow, obviously right), ``cpu.py`` (fast on
a CPU) and ``triton.py`` (for CUDA and ROCm devices, imported only when a device tensor comes;
``concept_embedding`` launches ``concept_mixture``'s). The public functions check shapes and dtypes
and then call one opaque torch op in the namespace ``tokenlens``, so a compiled graph sees a single
node whatever the device.

This package knows tensors and nothing else: no requests, no methods, no engine, no tokenizer.
"""

from . import philox
from .concept_embedding import concept_embedding
from .concept_mixture import concept_mixture
from .dense_mixture import dense_mixture
from .logit_edit import logit_edit
from .signals_topk import TopKSignals, signals_topk
from .warm_up import warm_up

LAUNCHES = {
    "signals_topk": 2,
    "concept_mixture": 1,
    "concept_mixture_out": 1,
    "concept_embedding_out": 1,
    "dense_mixture_out": 4,
    "logit_edit": 1,
}
"""Kernels that an op launches on a device, by its name."""

Signals = TopKSignals
"""Its name before 0.2, which goes with 0.3."""

__all__ = [
    "LAUNCHES",
    "Signals",
    "TopKSignals",
    "concept_embedding",
    "concept_mixture",
    "dense_mixture",
    "logit_edit",
    "philox",
    "signals_topk",
    "warm_up",
]
