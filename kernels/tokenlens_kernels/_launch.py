"""What every kernel launch shares. Imports Triton, so it is imported only with a device tensor."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton

# Multiply-adds may be fused. Passed with every launch: the default differs between Triton releases.
FP_FUSION = True


def on_device_of(tensor: torch.Tensor) -> AbstractContextManager[Any]:
    """Make the tensor's device current, where Triton launches; the interpreter has none."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def next_power_of_two(n: int) -> int:
    power: int = triton.next_power_of_2(n)
    return power
