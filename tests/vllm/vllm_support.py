"""What the vLLM tests share: the environment of their processes, and how jobs are run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import outside
import pytest
from servers import VLLM_ENVIRONMENT

from tokenlens import versions

HERE = Path(__file__).parent
TIMEOUT = 2700
"""Seconds for one process of engines: the second runner is interpreted, and machines are shared."""

needs_vllm = pytest.mark.skipif(
    versions.installed("vllm") is None, reason="vLLM is not installed here"
)


def environment(second_runner=False):
    """The environment of a process that runs vLLM on a CPU."""
    path = [*outside.installed(), *filter(None, [os.environ.get("PYTHONPATH")])]
    if second_runner:
        path.insert(0, str(HERE / "interpreter"))
    values = {
        **os.environ,
        **VLLM_ENVIRONMENT,
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONWARNINGS": "ignore",
        "PYTHONPATH": os.pathsep.join(path),
    }
    return {**values, "TRITON_INTERPRET": "1"} if second_runner else values


def run_scenarios(work, folder, second_runner=False):
    """Results of named jobs, from one process that runs them in turn."""
    names = list(work)
    (folder / "jobs.json").write_text(json.dumps([work[name] for name in names]))
    done = subprocess.run(
        [sys.executable, str(HERE / "vllm_engine_process.py"), "jobs.json", "results.json"],
        cwd=folder,
        env={**environment(second_runner), "VLLM_CACHE_ROOT": str(folder / "cache")},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return dict(zip(names, json.loads((folder / "results.json").read_text())))
