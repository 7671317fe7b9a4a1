"""Evaluations on vLLM: ``tokenlens eval``'s engine and lm-eval's model answer as Hugging Face."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from vllm_support import TIMEOUT, environment, needs_vllm

# The fixture counts in the first test.
pytestmark = [needs_vllm, pytest.mark.slow, pytest.mark.timeout(3000)]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation")
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("vllm_evaluation.py")), str(folder)],
        env={**environment(), "VLLM_CACHE_ROOT": str(folder / "cache")},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return json.loads((folder / "found.json").read_text())


def test_every_greedy_arm_s_records_are_those_of_hugging_face(found):
    greedy = [name for name in found["hf"] if not name.startswith("sampling")]
    assert len(greedy) == len(found["hf"]) - 1 == 5
    for name in greedy:
        assert found["vllm"][name] == found["hf"][name]
    assert sum(record["latent_steps"] for record in found["vllm"]["gumbel"]) > 50
    assert any(record["finished"] for arm in found["vllm"].values() for record in arm)


def test_sampling_is_the_engine_s_own(found):
    (name,) = [name for name in found["vllm"] if name.startswith("sampling")]
    assert found["vllm"][name] != found["vllm"]["greedy"]


@pytest.mark.parametrize("spec", ["", "tiny-soft", "tiny-gumbel"])
def test_lm_eval_s_answers_are_those_of_generate(found, spec):
    answers = [answer for _, answer in found["lm_eval"][spec]]
    assert answers == found["generate"][spec]


def test_lm_eval_s_specs_differ(found):
    texts = {json.dumps(found["generate"][spec]) for spec in ("", "tiny-soft", "tiny-gumbel")}
    assert len(texts) == 3


def test_a_task_that_generates_nothing_is_refused(found):
    assert "soft_thinking with a loglikelihood task" in found["lm_eval"]["scoring"]
