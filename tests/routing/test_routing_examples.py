"""The example of two Hugging Face models runs as it is written; the server's is a vLLM test."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_routing_in_generate_and_in_a_router():
    done = subprocess.run(
        [sys.executable, "examples/routing_hf.py"],
        cwd=ROOT, env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "steps by the large model: " in done.stdout
    assert {"small", "large"} <= set(done.stdout.split())
    assert done.stdout.count(" nats") > 3
