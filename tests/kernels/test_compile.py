"""Compiles the Triton kernels for devices that are not here, and reads the compilers' reports."""

from __future__ import annotations

import csv
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

triton = pytest.importorskip("triton", reason="Triton has no build for this platform")

BENCHMARKS = Path(__file__).parent.parent.parent / "benchmarks"


def _load() -> Any:
    path = BENCHMARKS / "kernels_compile.py"
    specification = importlib.util.spec_from_file_location("kernels_compile", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules["kernels_compile"] = module
    specification.loader.exec_module(module)
    return module


kernels_compile = _load()
VARIANTS = {variant.name: variant for variant in kernels_compile.variants()}


@pytest.fixture(scope="module", autouse=True)
def fresh_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with triton.knobs.cache.scope():
        triton.knobs.cache.dir = str(tmp_path_factory.mktemp("triton"))
        yield


@pytest.mark.slow
@pytest.mark.parametrize("target", kernels_compile.TARGETS)
@pytest.mark.parametrize("name", [n for n, v in VARIANTS.items() if not v.is_sibling])
def test_compiles_without_spills_and_with_wide_loads(name: str, target: str) -> None:
    variant = VARIANTS[name]
    line = kernels_compile.compile_variant(variant, target)
    assert line.registers is not None
    assert kernels_compile.faults(variant, line) == []


def test_the_fault_finder_finds_faults() -> None:
    variant = VARIANTS["tile_stats fp32"]
    line = kernels_compile.Line("tile_stats fp32", "sm_90", "3", 255, 4, 50_000, 0, 1, 0.1)
    assert len(kernels_compile.faults(variant, line)) == 3


def test_the_committed_report_covers_every_kernel_and_target() -> None:
    with (BENCHMARKS / "results" / "kernels_compile.csv").open() as file:
        lines = list(csv.DictReader(file))
    covered = {(line["variant"], line["target"]) for line in lines}
    assert covered == {(name, target) for name in VARIANTS for target in kernels_compile.TARGETS}
    assert all(int(line["spilled_registers"]) == 0 for line in lines)
