"""The soft_grpo example on vLLM's rollouts: a real engine whose cache is too small for them."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from vllm_support import environment, needs_vllm

CODE = Path(__file__).parents[2] / "examples" / "soft_grpo"
SMALL = {
    "num_gpu_blocks_override": 10, "block_size": 32, "max_model_len": 160, "max_num_seqs": 16,
    "kv_cache_memory_bytes": 8 << 20,
}  # fmt: skip

pytestmark = [needs_vllm, pytest.mark.slow]


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    """What four steps of a training say; behind the third the engine keeps its old weights."""
    folder = tmp_path_factory.mktemp("soft_grpo")
    script = f"""
        import json, sys
        sys.path.insert(0, {str(CODE)!r})
        import train
        options = train.options_of([
            {str(folder / "run")!r}, "--rollouts", "vllm", "--engine-args", {json.dumps(SMALL)!r},
            "--problems", "4", "--group", "4", "--limit", "100", "--dev", "0",
        ])
        training, found = train.Training(options), []
        for step in range(4):
            if step == 2:
                training.engine.load = lambda model: None
            training.step = step
            found.append(training.one_step())
        print("FOUND" + json.dumps(found))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env={**environment(), "VLLM_CACHE_ROOT": str(folder / "cache")},
        capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.partition("FOUND")[2])


def test_the_ratio_is_one_for_rollouts_that_were_preempted_and_for_new_weights(steps):
    assert steps[0]["preemptions"] >= 3
    assert steps[2]["preemptions"] > steps[0]["preemptions"]
    for step in steps[:3]:
        assert step["useful"]
        assert step["off"] < 1e-4


def test_an_engine_that_keeps_its_old_weights_is_seen(steps):
    assert steps[3]["off"] > 1e-3
