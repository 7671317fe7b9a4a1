"""Fixtures of the vLLM tests: engines run in processes of their own, once for all tests."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CONFORMANCE = HERE.parent / "conformance"
sys.path.insert(0, str(CONFORMANCE))
sys.path.insert(0, str(HERE))

import jobs  # noqa: E402  # after the path

from tokenlens.vllm import versions  # noqa: E402

TIMEOUT = 1200
"""Seconds for one process of engines: the second runner is interpreted, and machines are shared."""

needs_vllm = pytest.mark.skipif(versions.installed() is None, reason="vLLM is not installed here")


def environment(second_runner=False):
    """The environment of a process that runs vLLM on a processor."""
    values = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONWARNINGS": "ignore",
    }
    if second_runner:
        values["TRITON_INTERPRET"] = "1"
        values["PYTHONPATH"] = os.pathsep.join(
            [str(HERE / "interpreter"), *filter(None, [os.environ.get("PYTHONPATH")])]
        )
    return values


def run_jobs(work, folder, second_runner=False):
    """Results of named jobs, from one process that runs them in turn."""
    names = list(work)
    (folder / "jobs.json").write_text(json.dumps([work[name] for name in names]))
    done = subprocess.run(
        [sys.executable, str(HERE / "driver.py"), "jobs.json", "results.json"],
        cwd=folder,
        env=environment(second_runner),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return dict(zip(names, json.loads((folder / "results.json").read_text())))


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    """Paths of the tiny random models, by name."""
    import models

    folder = tmp_path_factory.mktemp("checkpoints")
    return {name: models.save(name, folder) for name in models.MODELS}


@pytest.fixture(scope="session")
def reference(checkpoints):
    """Hugging Face's ids of the table's greedy scenarios, by model."""
    import models

    return {name: models.references(path) for name, path in checkpoints.items()}


@pytest.fixture(scope="session")
def first_runner(checkpoints, tmp_path_factory):
    """Everything that runs under the first model runner, by the name of the job."""
    qwen3 = checkpoints["qwen3"]
    work = {
        "sync": jobs.table_job(qwen3, trace="full"),
        "async": jobs.table_job(qwen3, {"async": True}),
        "llama": jobs.table_job(checkpoints["llama-tied"]),
        "preempted": jobs.table_job(qwen3, **jobs.SMALL_CACHE),
        "preempted-async": jobs.table_job(qwen3, {"async": True}, **jobs.SMALL_CACHE),
        "no-replay": jobs.table_job(qwen3, {"no_replay": True}, **jobs.SMALL_CACHE),
        "dropped": jobs.dropped_job(qwen3, {"async": True}),
        "small-history": jobs.small_history_job(qwen3),
        "shared": jobs.shared_job(qwen3),
        "no-salt": jobs.shared_job(qwen3, {"no_salt": True}),
        "stock": jobs.plain_job(qwen3, tokenlens=False),
        "loaded": jobs.plain_job(qwen3, by_class=True),
        "admission": jobs.admission_job(qwen3),
        **jobs.refused_jobs(qwen3),
    }
    return run_jobs(work, tmp_path_factory.mktemp("first"))


@pytest.fixture(scope="session")
def second_runner(checkpoints, tmp_path_factory):
    """Everything that runs under the second model runner, through Triton's interpreter."""
    qwen3 = checkpoints["qwen3"]
    work = {
        "sync": jobs.table_job(qwen3),
        "async": jobs.table_job(qwen3, {"async": True}),
        "preempted": jobs.table_job(qwen3, **jobs.SMALL_CACHE),
        "no-replay": jobs.table_job(qwen3, {"no_replay": True}, **jobs.SMALL_CACHE),
        "shared": jobs.shared_job(qwen3),
    }
    return run_jobs(work, tmp_path_factory.mktemp("second"), second_runner=True)
