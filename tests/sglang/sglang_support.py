"""What the SGLang tests share: the environment of their processes, and how jobs are run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from sglang_environment import environment

from tokenlens import versions

HERE = Path(__file__).parent
TIMEOUT = 3000
"""Seconds for one process of engines: their start is slow, and machines are shared."""

needs_sglang = pytest.mark.skipif(
    versions.installed("sglang") is None, reason="SGLang is not installed"
)


def run_scenarios(work, folder, **extra):
    """Results of named jobs, from one process that runs their engines in turn."""
    (folder / "jobs.json").write_text(json.dumps(work))
    extra["TOKENLENS_TEST_UNTOUCHED"] = str(folder / "untouched.json")
    done = subprocess.run(
        [sys.executable, str(HERE / "sglang_engine_process.py"), "jobs.json", "results.json"],
        cwd=folder,
        env=environment(**extra),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return json.loads((folder / "results.json").read_text())
