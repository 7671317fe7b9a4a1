"""Runs ``triton_cases.py`` under Triton's interpreter, and on a device where there is one.

The interpreter has to be chosen before Triton is imported, so the cases run in their own process.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="Triton has no build for this platform")

CASES = Path(__file__).with_name("triton_cases.py")


def _run_cases(environment: dict[str, str]) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "pytest", str(CASES), "--no-header", "--show-capture=no"],
        # One thread: the blocks are small, and threads that wait for each other are slow.
        env=os.environ | environment | {"OMP_NUM_THREADS": "1"},
        cwd=CASES.parent.parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-2000:]
    assert " passed" in result.stdout


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_kernels_equal_naive_under_the_interpreter() -> None:
    _run_cases({"TRITON_INTERPRET": "1"})


@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no device at hand")
def test_kernels_equal_naive_on_the_device() -> None:
    _run_cases({"TRITON_INTERPRET": "0"})
