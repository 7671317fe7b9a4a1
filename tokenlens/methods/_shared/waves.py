"""Waveforms: one function a shape, over the share of the period that has passed.

A new schedule is one function here and its name in ``tokenlens.methods.cyclic_reflex.config.Wave``.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor


def triangular(cycle: Tensor) -> Tensor:
    """0 at the start, 1 after a quarter of the period, -1 after three quarters.

    Source: CyclicReflex (arXiv 2506.11077, section 4).
    """
    rising, falling, back = cycle / 0.25, 1 - 2 * (cycle - 0.25) / 0.5, -1 + (cycle - 0.75) / 0.25
    return torch.where(cycle <= 0.25, rising, torch.where(cycle <= 0.75, falling, back))


def cosine(cycle: Tensor) -> Tensor:
    """A smooth wave with the zeros and the peaks of the triangular one."""
    return torch.cos(2 * math.pi * (cycle - 0.25))


def square(cycle: Tensor) -> Tensor:
    """1 in the first half of the period, -1 in the second."""
    return torch.where(cycle < 0.5, 1.0, -1.0).to(cycle.dtype)


def constant(cycle: Tensor) -> Tensor:
    """Always 1."""
    return torch.ones_like(cycle)


WAVES: dict[str, Callable[[Tensor], Tensor]] = {
    "triangular": triangular,
    "cosine": cosine,
    "square": square,
    "constant": constant,
}


def schedule(
    wave: Tensor, amplitude: Tensor, period: Tensor, shift: Tensor, position: Tensor
) -> Tensor:
    """The bias at a position.

    Parameters
    ----------
    wave
        ``[num_rows]`` int64, index into :data:`WAVES`.
    amplitude, period, shift
        ``[num_rows]`` float: logits, tokens, periods.
    position
        ``[num_rows]`` int64, tokens.

    Returns
    -------
    Tensor
        ``[num_rows]`` float64: long traces lose digits in float32.
    """
    period = period.double()
    cycle = torch.remainder(position + shift * period, period) / period
    values = torch.stack([shape(cycle) for shape in WAVES.values()])
    return amplitude * values.gather(0, wave[None])[0]
