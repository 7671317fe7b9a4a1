"""Rows of logits with their parameters, as the kernel tests use them.

Shared by the CPU tests and by the interpreter tests, which run in a process of their own.
"""

from __future__ import annotations

from typing import Any

import torch

# (vocab_size, width of the logits): odd, round, one past a power of two's multiple, and padded.
VOCABULARIES = [(111, 111), (32000, 32000), (128001, 128001), (151669, 151936)]


def parameters(num_rows: int, vocab_size: int, width: int, **overrides: Any) -> dict[str, Any]:
    """Keyword arguments of ``signals_topk`` with every filter off."""

    def filled(value: float, dtype: torch.dtype) -> torch.Tensor:
        return torch.full((num_rows,), value, dtype=dtype)

    values: dict[str, Any] = {
        "active": filled(True, torch.bool),
        "inverse_temperature": filled(1.0, torch.float32),
        "top_k": filled(0, torch.int64),
        "top_p": filled(1.0, torch.float32),
        "min_p": filled(0.0, torch.float32),
        "max_entries": filled(width, torch.int64),
        "noise_temperature": filled(0.0, torch.float32),
        "seed": filled(0, torch.int64),
        "position": torch.arange(num_rows),
        "vocab_size": vocab_size,
        "width": width,
    }
    for name, value in overrides.items():
        tensor = values[name]
        if isinstance(tensor, torch.Tensor) and not isinstance(value, torch.Tensor):
            value = torch.full_like(tensor, value)
        values[name] = value
    return values


def mixed_parameters(num_rows: int, vocab_size: int, width: int, seed: int) -> dict[str, Any]:
    """Keyword arguments that differ from row to row: every filter on, off and at its limits."""
    generator = torch.Generator().manual_seed(seed)

    def pick(choices: list[float], dtype: torch.dtype) -> torch.Tensor:
        index = torch.randint(len(choices), (num_rows,), generator=generator)
        return torch.tensor(choices, dtype=dtype)[index]

    return parameters(
        num_rows,
        vocab_size,
        width,
        active=torch.rand(num_rows, generator=generator) < (0.9 if num_rows > 1 else 2.0),
        inverse_temperature=pick([1.0, 1 / 0.6, 0.5, 4.0, 1e6], torch.float32),
        top_k=pick([0, 1, (width + 1) // 2, width], torch.int64),
        top_p=pick([1.0, 0.95, 0.8, 0.3, 1e-6], torch.float32),
        min_p=pick([0.0, 0.0, 0.05, 0.5, 1.0], torch.float32),
        max_entries=pick([1, (width + 1) // 2, width, width], torch.int64),
        noise_temperature=pick([0.0, 0.0, 0.1, 0.5, 1.0], torch.float32),
        seed=torch.randint(-(2**63), 2**63 - 1, (num_rows,), generator=generator),
        position=torch.randint(0, 2**31 - 1, (num_rows,), generator=generator),
    )


def logits(
    num_rows: int,
    vocab_size: int,
    columns: int,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    spread: float = 4.0,
) -> torch.Tensor:
    """[num_rows, columns] in ``dtype``, rows further apart than their length; padding is poison.

    From eight rows on, the first few are special: masked, tied, NaN, infinite, flat, peaked.
    """
    generator = torch.Generator().manual_seed(seed)
    storage = torch.full((num_rows, columns + 5), torch.nan)
    storage[:, :vocab_size] = torch.randn(num_rows, vocab_size, generator=generator) * spread
    if num_rows >= 8:
        storage[0, 1:vocab_size:2] = -torch.inf
        storage[1, :vocab_size] = storage[1, :vocab_size].round()
        storage[2, :vocab_size] = -torch.inf
        storage[3, vocab_size - 1] = torch.nan
        storage[4, vocab_size // 2] = torch.inf
        storage[5, :vocab_size] = -3.0
        storage[6, :vocab_size] = torch.where(
            torch.arange(vocab_size) == vocab_size - 1, 60000.0, -torch.inf
        )
        storage[7, vocab_size - 3 : vocab_size] = storage[7, :vocab_size].max() + 1
    return storage.to(dtype)[:, :columns]
