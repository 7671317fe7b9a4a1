"""The embedding alone, on two ranks: mixtures of a sharded table, and tables that are refused."""

import socket
import subprocess
import sys

import pytest
from vllm_support import HERE, environment, needs_vllm

pytestmark = [needs_vllm, pytest.mark.slow]


def test_a_sharded_table_gives_the_same_mixtures():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
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
