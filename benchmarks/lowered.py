"""The Triton kernels that Inductor writes for a graph, on a machine without a device.

Inductor has a Triton backend for CPUs, whose scheduler and code are those of a device: it is asked
for the text, and nothing is compiled or run. Triton is told that its device is an H100, and kernels
that do not wait for each other are joined, which Inductor leaves out for CPUs.
"""

if __name__ == "__main__":
    import sentences  # noqa: F401  first: it says what is missing

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.fx import GraphModule

from tokenlens.core.compiled import OPTIONS


class _Text(BaseException):
    """Carries a graph's text out of the compiler."""


class _Driver:
    """Triton's driver of a device that is not there."""

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


def _groups(scheduler: Any) -> list[list[Any]]:
    """What may be one launch: nodes that do not wait for each other, as on a device."""
    most = torch._inductor.config.combo_kernel_max_num_nodes
    levels = scheduler._topological_sort_nodes()
    return [level[i : i + most] for level in levels for i in range(0, len(level), most)]


@contextmanager
def _as_for_a_device() -> Iterator[None]:
    import triton.runtime.driver as drivers
    from torch._inductor import config
    from torch._inductor.graph import GraphLowering
    from torch._inductor.scheduler import ForeachKernelSchedulerNode

    def text(graph: Any, *args: Any, **kwargs: Any) -> Any:
        code = graph.codegen()[0]
        raise _Text(getattr(code, "value", code))

    driver = getattr(drivers, "driver", drivers)
    before = driver._active if hasattr(driver, "_active") else None
    driver.set_active(_Driver())
    options = {k: v for k, v in OPTIONS.items() if k in config.get_config_copy()}
    try:
        with (
            patch.object(GraphLowering, "compile_to_module", text),
            patch.object(
                ForeachKernelSchedulerNode,
                "group_algorithm_for_combo_kernels",
                staticmethod(_groups),
            ),
            config.patch(cpu_backend="triton", fx_graph_cache=False, **options),
        ):
            yield
    finally:
        driver._active = before


def text_of(graph: GraphModule, inputs: Sequence[Tensor]) -> str:
    """The program that Inductor writes for a graph."""
    from torch._inductor.compile_fx import compile_fx

    try:
        with _as_for_a_device():
            compile_fx(graph, list(inputs))
    except _Text as text:
        return str(text)
    raise RuntimeError("Inductor wrote nothing: this version goes another way")


def launches_of(text: str, ours: dict[str, int]) -> list[str]:
    """What a program launches, by name: kernels, ops, and the library's own by their kernels."""
    body = text.split("def call(", 1)[1]
    found = re.findall(r"^\s+(triton_\w+)\.run\(", body, re.M)
    found += re.findall(r"(?:^\s+|= )extern_kernels\.(\w+)\(", body, re.M)
    found += re.findall(r"(?:^\s+|= )aten\.(\w+)(?:\.\w+)*\(", body, re.M)
    for package, name in re.findall(r"(?:^\s+|= )torch\.ops\.(\w+)\.(\w+)[.(]", body, re.M):
        found += [name] * ours.get(name, 1) if package in ("tokenlens", "aten") else []
    return found
