"""Muon for matrices, in float32.

Scope: one small optimizer. ``torch.optim.Muon`` orthogonalises in bfloat16, which is 50 times
slower than float32 on a CPU without bfloat16 instructions, and it would make the result depend on
whether the CPU has them.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Coefficients of the quintic Newton-Schulz iteration (Jordan et al. 2024, "Muon").
QUINTIC = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5


def orthogonalise(matrix: Tensor) -> Tensor:
    """Return roughly the nearest orthogonal matrix (singular values near 1) of ``[m, n]``."""
    a, b, c = QUINTIC
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised; the update's root mean square matches AdamW's (about 0.2)."""

    def __init__(self, params, lr: float, momentum: float = 0.95, weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                momentum = state["momentum"]
                momentum.lerp_(parameter.grad, 1 - group["momentum"])
                ahead = parameter.grad.lerp(momentum, group["momentum"])
                scale = 0.2 * max(parameter.shape) ** 0.5
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(orthogonalise(ahead), alpha=-group["lr"] * scale)
