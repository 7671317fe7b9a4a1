"""The embedding alone, on two ranks: mixtures of a sharded table, and tables that are refused."""

import subprocess
import sys

import pytest
from ports import free_port
from vllm_support import HERE, environment, needs_vllm

pytestmark = [needs_vllm, pytest.mark.slow]


def test_a_sharded_table_gives_the_same_mixtures():
    port = str(free_port())
    ranks = [
        subprocess.Popen(
            [sys.executable, str(HERE / "vllm_two_ranks.py"), str(rank), port],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for rank in ranks:
        out, error = rank.communicate(timeout=500)
        assert rank.returncode == 0, error[-3000:]
        assert out.strip().endswith("fine")
