"""The embedding alone, on two ranks: mixtures of a sharded table, and tables that are refused."""

import subprocess
import sys
from pathlib import Path

import pytest
from ports import free_port
from vllm_support import HERE, environment, needs_vllm

pytestmark = [needs_vllm, pytest.mark.slow]


@pytest.mark.parametrize("instructions", ["avx2", "avx512"])
def test_a_sharded_table_gives_the_same_mixtures(instructions):
    """vLLM has a library of kernels for each; their ranks talk in other ways."""
    if instructions == "avx512" and "avx512f" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("this CPU has no AVX-512")
    values = environment()
    # As in a shell in which nobody has started vLLM.
    values.pop("VLLM_DIST_IDENT", None)
    port = str(free_port())
    ranks = [
        subprocess.Popen(
            [sys.executable, str(HERE / "vllm_two_ranks.py"), str(rank), port, instructions],
            env={**values, "ATEN_CPU_CAPABILITY": instructions},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        for rank in ranks:
            out, error = rank.communicate(timeout=500)
            assert rank.returncode == 0, error[-3000:]
            assert out.strip().endswith("fine")
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()
