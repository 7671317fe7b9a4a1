"""The offline example as a user runs it: a multi-process engine, our class by its name."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from vllm_support import environment, needs_vllm

pytestmark = [needs_vllm, pytest.mark.slow, pytest.mark.timeout(1200)]

FOOTER = re.compile(r"^\[(\d+) of (\d+) tokens fed as mixtures\]$", re.MULTILINE)


def test_offline():
    script = Path(__file__).parents[2] / "examples" / "vllm_offline.py"
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**environment(), "VLLM_CPU_KVCACHE_SPACE": "1"},
        capture_output=True,
        text=True,
        timeout=1000,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    plain, soft, noisy = done.stdout.split("--- ")[1:]
    assert "fed as mixtures" not in plain
    for text in (soft, noisy):
        latent, tokens = map(int, FOOTER.search(text).groups())
        assert 0 < latent <= tokens
