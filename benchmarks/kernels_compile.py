"""Compiles every Triton kernel ahead of time, for devices that this machine does not have.

Writes one line per kernel and target: registers, spills, shared memory, and whether the loads are
128 bits wide. No device is needed; the compilers come with Triton. ``--check`` fails on what the
tests fail on. The figures are facts about compiled code, not about its speed.

    python benchmarks/kernels_compile.py --output benchmarks/results/kernels_compile.csv
"""

from __future__ import annotations

if __name__ == "__main__":
    import sentences  # noqa: F401  first: it says what is missing

import argparse
import csv
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import triton
from tokenlens_kernels._launch import FP_FUSION
from tokenlens_kernels.concept_mixture import triton as mixture
from tokenlens_kernels.dense_mixture import triton as dense
from tokenlens_kernels.logit_edit import triton as edit
from tokenlens_kernels.signals_topk import triton as signals
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}

# Bytes of shared memory that a block can have on every target without asking for more.
SHARED_LIMIT = 48 * 1024

# Variants that may spill, and where: (variant, target). Everything else must not.
SPILLS_ALLOWED: set[tuple[str, str]] = set()


@dataclass(frozen=True)
class Variant:
    """One kernel with the types and compile-time arguments that one kind of call gives it."""

    name: str
    kernel: Any
    # Type of each run-time argument.
    types: dict[str, str]
    constants: dict[str, Any]
    num_warps: int
    # Where ROCm is launched with another number.
    num_warps_hip: int | None = None
    num_stages: int = 3
    # Arguments known to be multiples of 16 beside the pointers.
    divisible: tuple[str, ...] = ()
    # A sibling of another variant, left out where time is short.
    is_sibling: bool = False
    # Whether the kernel streams memory, so that its loads have to be 128 bits wide.
    wide_loads: bool = True


@dataclass(frozen=True)
class Line:
    """A line of the report."""

    variant: str
    target: str
    triton: str
    registers: int | None
    spilled_registers: int | None
    shared_bytes: int
    wide_loads: int
    instructions: int
    seconds: float


def _pointers(**types: str) -> dict[str, str]:
    return {name: f"*{dtype}" for name, dtype in types.items()}


def _numbers(*names: str) -> dict[str, str]:
    return dict.fromkeys(names, "i32")


def _signals_variants() -> list[Variant]:
    variants = []
    for dtype in ("fp32", "bf16", "fp16"):
        variants.append(
            Variant(
                f"tile_stats {dtype}",
                signals.tile_stats_kernel,
                _pointers(
                    logits_ptr=dtype,
                    active_ptr="u8",
                    inverse_temperature_ptr="fp32",
                    tile_maxima_ptr="fp32",
                    split_stats_ptr="fp32",
                )
                | _numbers("row_stride", "active_stride", "inverse_temperature_stride")
                | _numbers("vocab_size", "num_tiles", "num_splits"),
                {
                    "TILES": signals.TILES_PER_SPLIT,
                    "TILE": signals.TILE,
                    "STATS": signals.STATS_PER_SPLIT,
                },
                num_warps=4,
                divisible=("row_stride",),
                is_sibling=dtype == "fp16",
            )
        )
    for dtype, entries in (("fp32", 8), ("fp32", 16), ("bf16", 16), ("fp32", 32), ("fp32", 64)):
        variants.append(
            Variant(
                f"select {dtype} {entries} entries",
                signals.select_kernel,
                _pointers(
                    logits_ptr=dtype,
                    active_ptr="u8",
                    inverse_temperature_ptr="fp32",
                    top_k_ptr="i64",
                    top_p_ptr="fp32",
                    min_p_ptr="fp32",
                    max_entries_ptr="i64",
                    noise_temperature_ptr="fp32",
                    seed_ptr="i64",
                    position_ptr="i64",
                    tile_maxima_ptr="fp32",
                    split_stats_ptr="fp32",
                    logsumexp_ptr="fp32",
                    entropy_ptr="fp32",
                    max_probability_ptr="fp32",
                    probabilities_ptr="fp32",
                    ids_ptr="i64",
                    weights_ptr="fp32",
                    weight_ids_ptr="i64",
                )
                | _numbers("row_stride", *(f"{name}_stride" for name in signals.PER_ROW))
                | _numbers("vocab_size", "num_tiles", "num_splits", "width"),
                # A vocabulary of 151 936: 1187 tiles in 38 splits.
                {
                    "TILES_POW2": 2048,
                    "SPLITS_POW2": 64,
                    "ENTRIES": entries,
                    **signals._SELECT_CONSTANTS,
                },
                num_warps=signals.warps_for(entries),
                divisible=("row_stride", "vocab_size"),
                is_sibling=entries in (8, 32),
            )
        )
    return variants


def _table_variants() -> list[Variant]:
    variants = []
    for dtype, out, stream in (
        ("bf16", "bf16", False),
        ("fp16", "fp16", False),
        ("fp32", "fp32", False),
        ("bf16", "fp32", False),
        ("bf16", "bf16", True),
    ):
        variants.append(
            Variant(
                f"mixture {dtype} to {out}{' stream' if stream else ''}",
                mixture.mixture_kernel,
                _pointers(
                    table_ptr=dtype,
                    token_ids_ptr="i64",
                    plan_row_ptr="i64",
                    ids_ptr="i64",
                    weights_ptr="fp32",
                    out_ptr=out,
                )
                | _numbers("table_stride", "hidden")
                | {"scale": "fp32"}
                | _numbers("shard_start", "shard_size", "width", "num_plans")
                | _pointers(
                    vectors_ptr="fp32",
                    vector_rows_ptr="i64",
                    noise_scale_ptr="fp32",
                    noise_seed_ptr="i64",
                    noise_position_ptr="i64",
                ),
                {
                    "IS_STREAM": stream,
                    "ADDS": stream,
                    **mixture.NOISE,
                    "BLOCK": 1024,
                    "UNROLL": mixture._UNROLL,
                },
                num_warps=mixture.warps_for(is_hip=False),
                num_warps_hip=mixture.warps_for(is_hip=True),
                divisible=("table_stride", "hidden"),
                is_sibling=dtype == "fp16" or out != dtype,
            )
        )
    for dtype in ("bf16", "fp32"):
        variants.append(
            Variant(
                f"dense_mixture {dtype}",
                dense.dense_mixture_kernel,
                _pointers(
                    logits_ptr="fp32",
                    table_ptr=dtype,
                    inverse_temperature_ptr="fp32",
                    row_ptr="fp32",
                    partial_ptr="fp32",
                )
                | _numbers(
                    "row_stride",
                    "table_stride",
                    "hidden",
                    "num_rows",
                    "first",
                    "last",
                    "split_size",
                ),
                {
                    "ROWS": dense._BLOCK_ROWS,
                    "VOCABULARY": dense._BLOCK_VOCABULARY,
                    "HIDDEN": dense._BLOCK_HIDDEN,
                    "PRECISION": "tf32x3",
                },
                num_warps=4,
                num_stages=dense._STAGES,
                divisible=("row_stride", "table_stride", "hidden"),
                wide_loads=False,
            )
        )
    return variants


def _small_variants() -> list[Variant]:
    return [
        Variant(
            "logit_edit fp32",
            edit.logit_edit_kernel,
            _pointers(
                logits_ptr="fp32",
                slots_ptr="i64",
                edit_ids_ptr="i64",
                edit_deltas_ptr="fp32",
                edit_counts_ptr="i64",
                forced_ids_ptr="i64",
            )
            | _numbers("row_stride", "delta_row_stride", "delta_stride")
            | _numbers("vocab_size", "columns", "max_slots", "max_edits"),
            {"BLOCK": edit._BLOCK, "CHUNK": edit._CHUNK},
            num_warps=4,
            divisible=("row_stride",),
            wide_loads=False,
        ),
        Variant(
            "row_scale",
            dense.row_scale_kernel,
            _pointers(
                active_ptr="u8",
                inverse_temperature_ptr="fp32",
                split_stats_ptr="fp32",
                row_ptr="fp32",
            )
            | _numbers("num_splits"),
            {"SPLITS_POW2": 64, "STATS": signals.STATS_PER_SPLIT},
            num_warps=1,
            wide_loads=False,
        ),
        Variant(
            "add_splits bf16",
            dense.add_splits_kernel,
            _pointers(partial_ptr="fp32", out_ptr="bf16")
            | _numbers("hidden")
            | {"scale": "fp32"}
            | _numbers("num_rows", "num_splits"),
            {"BLOCK": 1024},
            num_warps=4,
            divisible=("hidden",),
        ),
    ]


def variants() -> list[Variant]:
    """Every kernel of the package in the forms that an engine launches."""
    return [*_signals_variants(), *_table_variants(), *_small_variants()]


def _nvidia_usage(cubin: bytes) -> tuple[int | None, int | None]:
    """Registers and spilled bytes of the compiled code, from its own resource table."""
    tool = triton.knobs.nvidia.cuobjdump.path
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        report = subprocess.run(
            [tool, "-res-usage", file.name], capture_output=True, text=True, check=True
        )
    found = re.search(r"REG:(\d+) STACK:(\d+)", report.stdout + report.stderr)
    return (int(found[1]), int(found[2]) // 4) if found else (None, None)


def _amd_field(assembly: str, name: str) -> int:
    found = re.search(rf"\.{name}:\s+(\d+)", assembly)
    return int(found[1]) if found else 0


def compile_variant(variant: Variant, target_name: str) -> Line:
    """Compile one variant for one target and read the compiler's report."""
    target = TARGETS[target_name]
    kernel = variant.kernel
    constants = dict(variant.constants)
    warps = variant.num_warps
    if target.backend == "hip":
        warps = variant.num_warps_hip or warps
    if target.backend == "hip" and "PRECISION" in constants:
        constants["PRECISION"] = "ieee"
    signature = {
        name: "constexpr" if name in constants else variant.types[name] for name in kernel.arg_names
    }
    position = {name: i for i, name in enumerate(kernel.arg_names)}
    attributes = {
        (position[name],): [["tt.divisibility", 16]]
        for name, dtype in signature.items()
        if dtype.startswith("*") or name in variant.divisible
    }
    source = ASTSource(
        kernel,
        signature,
        {(position[name],): value for name, value in constants.items()},
        attributes,
    )
    start = time.perf_counter()
    compiled = triton.compile(
        source,
        target=target,
        options={
            "num_warps": warps,
            "num_stages": variant.num_stages,
            "enable_fp_fusion": FP_FUSION,
        },
    )
    seconds = time.perf_counter() - start
    if target.backend == "cuda":
        registers, spilled = _nvidia_usage(compiled.asm["cubin"])
        assembly = compiled.asm["ptx"]
        wide = len(re.findall(r"ld\.global\S*\.(?:v4\.b32|v8\.b16|v2\.b64|b128)", assembly))
        wide += len(re.findall(r"cp\.async\.\S+ \[[^]]+\], \[[^]]+\], 0x10", assembly))
        instructions = len(re.findall(r"^\s+[@a-z][^:]*;", assembly, re.MULTILINE))
    else:
        assembly = compiled.asm["amdgcn"]
        registers = _amd_field(assembly, "vgpr_count")
        spilled = _amd_field(assembly, "vgpr_spill_count")
        wide = len(re.findall(r"(?:global|buffer)_load_dwordx4", assembly))
        instructions = len(re.findall(r"^\s+[a-z]_?\w+ ", assembly, re.MULTILINE))
    return Line(
        variant.name,
        target_name,
        triton.__version__,
        registers,
        spilled,
        compiled.metadata.shared,
        wide,
        instructions,
        round(seconds, 2),
    )


def faults(variant: Variant, line: Line) -> list[str]:
    """What is wrong with a compiled kernel, in words; empty if nothing is."""
    found = []
    if line.spilled_registers and (line.variant, line.target) not in SPILLS_ALLOWED:
        found.append(f"spills {line.spilled_registers} registers, which no entry allows")
    if line.shared_bytes > SHARED_LIMIT:
        found.append(f"needs {line.shared_bytes} bytes of shared memory, allowed {SHARED_LIMIT}")
    if variant.wide_loads and line.wide_loads == 0:
        found.append("has no 128-bit load")
    return [f"{line.variant} for {line.target} {fault}" for fault in found]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="where the CSV goes; printed if left out")
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--check", action="store_true", help="fail on spills and narrow loads")
    arguments = parser.parse_args()
    cache = tempfile.mkdtemp(prefix="tokenlens-compile-")
    triton.knobs.cache.dir = cache
    lines, wrong = [], []
    try:
        for variant in variants():
            for target in arguments.targets:
                line = compile_variant(variant, target)
                lines.append(line)
                wrong += faults(variant, line)
                print(
                    f"{line.variant:28} {line.target:7} {line.registers or 0:4} registers"
                    f" {line.spilled_registers or 0:3} spilled {line.shared_bytes:6} B shared"
                    f" {line.wide_loads:3} wide loads {line.seconds:6.2f} s",
                    file=sys.stderr,
                )
    finally:
        shutil.rmtree(cache, ignore_errors=True)
    file = arguments.output.open("w", newline="") if arguments.output else sys.stdout
    with file:
        writer = csv.DictWriter(file, [field.name for field in fields(Line)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(line) for line in lines)
    for fault in wrong:
        print(fault, file=sys.stderr)
    return 1 if wrong and arguments.check else 0


if __name__ == "__main__":
    sys.exit(main())
