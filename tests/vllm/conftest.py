"""Fixtures of the vLLM tests: engines run in processes of their own, once for all tests."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "conformance"))

import conformance_models as models  # after the path
import vllm_jobs as jobs
from vllm_support import run_jobs


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    """Paths of the tiny random models, by name."""
    folder = tmp_path_factory.mktemp("checkpoints")
    return {name: models.save(name, folder) for name in models.MODELS}


def tokenizer():
    """The tiny reasoner's."""
    import transformers

    return transformers.AutoTokenizer.from_pretrained(models.REASONER_PATH)


@pytest.fixture(scope="session")
def reference(checkpoints):
    """Hugging Face's ids of the table's greedy scenarios, by model."""
    found = {name: models.references(path) for name, path in checkpoints.items()}
    thinks = models.reasoner_scenarios(tokenizer())
    found["reasoner"] = models.references(str(models.REASONER_PATH), tokenizer(), {}, thinks)
    return found


@pytest.fixture(scope="session")
def traced():
    """Hugging Face's traces of the reasoner's rows."""
    from conformance_traces import reference_traces

    thinks = models.reasoner_scenarios(tokenizer())
    return reference_traces(str(models.REASONER_PATH), tokenizer(), {}, thinks)


@pytest.fixture(scope="session")
def first_runner(checkpoints, tmp_path_factory):
    """Everything that runs under the first model runner, by the name of the job."""
    folder = tmp_path_factory.mktemp("first")
    qwen3 = checkpoints["qwen3"]
    thinks = models.reasoner_scenarios(tokenizer())
    work = {
        "reasoner": jobs.reasoner_job(thinks),
        "sync": jobs.table_job(qwen3, trace="full"),
        "async": jobs.table_job(qwen3, {"async": True}),
        "llama": jobs.table_job(checkpoints["llama-tied"]),
        "gemma": jobs.table_job(checkpoints["gemma"]),
        "features": jobs.features_job(tokenizer()),
        "two-ranks": jobs.table_job(qwen3, **jobs.TWO_RANKS),
        "compiled": jobs.table_job(qwen3, enforce_eager=False),
        "preempted": jobs.preempted_job(qwen3),
        "preempted-async": jobs.preempted_job(qwen3, {"async": True}),
        "no-replay": jobs.table_job(qwen3, {"no_replay": True}, **jobs.SMALL_CACHE),
        "dropped": jobs.dropped_job(qwen3, {"async": True}),
        "small-history": jobs.small_history_job(qwen3),
        "shared": jobs.shared_job(qwen3),
        "seeds": jobs.seeds_job(qwen3),
        "no-salt": jobs.shared_job(qwen3, {"no_salt": True}),
        "stock": jobs.plain_job(qwen3, tokenlens=False),
        "loaded": jobs.plain_job(qwen3, by_class=True),
        "admission": jobs.admission_job(qwen3),
        "adapters": jobs.adapters_job(qwen3, folder),
        "other-version": jobs.other_version_job(qwen3),
        "faults": jobs.faults_job(qwen3),
        **jobs.refused_jobs(qwen3, folder),
    }
    return run_jobs(work, folder)


@pytest.fixture(scope="session")
def second_runner(checkpoints, tmp_path_factory):
    """Everything that runs under the second model runner, through Triton's interpreter."""
    from conformance_traces import TRACED

    qwen3 = checkpoints["qwen3"]
    thinks = models.reasoner_scenarios(tokenizer())
    work = {
        "reasoner": jobs.reasoner_job([one for one in thinks if one.name in TRACED.values()]),
        "sync": jobs.table_job(qwen3),
        "features": jobs.features_job(tokenizer()),
        "async": jobs.table_job(qwen3, {"async": True}),
        "preempted": jobs.preempted_job(qwen3),
        "no-replay": jobs.table_job(qwen3, {"no_replay": True}, **jobs.SMALL_CACHE),
        "shared": jobs.shared_job(qwen3),
        "faults": jobs.faults_job(qwen3),
        "seeds": jobs.seeds_job(qwen3),
    }
    return run_jobs(work, tmp_path_factory.mktemp("second"), second_runner=True)
