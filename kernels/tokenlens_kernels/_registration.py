"""Registers opaque torch ops in the namespace ``tokenlens``. Knows nothing of what they compute."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable

# Held for the life of the process: the registrations go when the object goes.
_LIBRARY: Any = torch.library.Library("tokenlens", "FRAGMENT")  # type: ignore[no-untyped-call]


def register(
    schema: str,
    *,
    cpu: Callable[..., Any],
    device: Callable[..., Any],
    fake: Callable[..., Any],
) -> None:
    """Define an op with one implementation for processors, one for CUDA and ROCm, one for tracing.

    The low-level registration costs a third of what ``torch.library.custom_op`` adds to each call.
    """
    name = schema.partition("(")[0]
    _LIBRARY.define(schema)
    _LIBRARY.impl(name, cpu, "CPU")
    _LIBRARY.impl(name, device, "CUDA")
    torch.library.register_fake(f"tokenlens::{name}", fake, lib=_LIBRARY)


def on_cpu(tensor: Tensor) -> bool:
    """Whether an op may leave out torch's dispatcher, which takes longer than many a small one.

    So it is for the plain tensors of a CPU while nothing traces.
    """
    return (
        tensor.is_cpu
        and type(tensor) in (Tensor, torch.nn.Parameter)
        and not torch.compiler.is_compiling()
    )
