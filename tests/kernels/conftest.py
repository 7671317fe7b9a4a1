"""Fixtures of the kernel tests: poisoned memory, one thread, and rows with everything in them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import tokenlens_kernels
import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PACKAGE = str(Path(tokenlens_kernels.__file__).parent)


def _poison(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.is_floating_point():
        return tensor.fill_(torch.nan)
    if tensor.dtype == torch.bool:
        return tensor.fill_(True)
    # Far outside every vocabulary, and still an address that faults cleanly on an index check.
    return tensor.fill_(torch.iinfo(tensor.dtype).min // 2)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "traced: torch.compile traces the package's own allocations")


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Uninitialised memory that the package asks for is full of NaN.

    A kernel that does not write every element of its output fails its test instead of passing by
    luck. Calls from elsewhere are left alone.
    """
    if request.node.get_closest_marker("traced"):
        return

    def wrap(allocate: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def allocate_poisoned(*args: Any, **kwargs: Any) -> torch.Tensor:
            tensor = allocate(*args, **kwargs)
            caller = sys._getframe(1).f_code.co_filename
            return _poison(tensor) if caller.startswith(PACKAGE) else tensor

        return allocate_poisoned

    for owner, name in (
        (torch, "empty"),
        (torch, "empty_like"),
        (torch.Tensor, "new_empty"),
    ):
        monkeypatch.setattr(owner, name, wrap(getattr(owner, name)))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that meet at every op are slow on a machine that is busy with something else."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def soft_vectors() -> dict[str, Any]:
    """Numbers that the authors' own functions gave, run in isolation in float32."""
    path = Path(__file__).parent.parent / "vectors" / "soft_methods.json"
    vectors: dict[str, Any] = json.loads(path.read_text())
    return vectors
