"""Fixtures of the vLLM tests: engines run in processes of their own, once for all tests."""

import sys
from functools import partial
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "conformance"))

import conformance_models as models  # after the path
import outside
import vllm_scenarios as scenarios
from releases import Lazily, of_every_release
from vllm_support import run_scenarios

# As the engines of these tests do, so that there is a reference.
outside.allow_here(*outside.NAMES)


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
    thinks = models.reasoner_scenarios(tokenizer())
    path = str(models.REASONER_PATH)
    makers = {name: partial(models.references, path) for name, path in checkpoints.items()}
    makers["reasoner"] = partial(models.references, path, tokenizer(), {}, thinks)
    return Lazily(makers)


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
        "reasoner": scenarios.reasoner_scenario(thinks),
        "sync": scenarios.table_scenario(qwen3, trace="full"),
        "async": scenarios.table_scenario(qwen3, {"async": True}),
        "llama": scenarios.table_scenario(checkpoints["llama-tied"]),
        "gemma": scenarios.table_scenario(checkpoints["gemma"]),
        "features": scenarios.features_scenario(tokenizer(), scenarios.SETTINGS["first"]),
        "two-ranks": scenarios.table_scenario(qwen3, **scenarios.TWO_RANKS),
        "compiled": scenarios.table_scenario(qwen3, files=models.FILES, enforce_eager=False),
        "preempted": scenarios.preempted_scenario(qwen3),
        "preempted-async": scenarios.preempted_scenario(qwen3, {"async": True}),
        "no-replay": scenarios.no_replay_scenario(qwen3),
        "dropped": scenarios.dropped_scenario(qwen3, {"async": True}),
        "small-history": scenarios.small_history_scenario(qwen3),
        "shared": scenarios.shared_scenario(qwen3),
        "seeds": scenarios.seeds_scenario(qwen3),
        "no-salt": scenarios.shared_scenario(qwen3, {"no_salt": True}),
        "stock": scenarios.plain_scenario(qwen3, tokenlens=False),
        "loaded": scenarios.plain_scenario(qwen3, *models.FILES, by_class=True),
        "admission": scenarios.admission_scenario(qwen3),
        "adapters": scenarios.adapters_scenario(qwen3, folder),
        "other-version": scenarios.other_version_scenario(qwen3),
        "faults": scenarios.faults_scenario(qwen3),
        "faulty": scenarios.faulty_scenario(qwen3),
        **scenarios.refused_scenarios(qwen3, folder),
    }
    kept = ("reasoner", "sync", "preempted", "stock", "loaded")
    return run_scenarios(of_every_release(work, kept), folder)


@pytest.fixture(scope="session")
def second_runner(checkpoints, tmp_path_factory):
    """Everything that runs under the second model runner, through Triton's interpreter."""
    from conformance_traces import TRACED

    qwen3 = checkpoints["qwen3"]
    thinks = models.reasoner_scenarios(tokenizer())
    work = {
        "reasoner": scenarios.reasoner_scenario(
            [one for one in thinks if one.name in TRACED.values()]
        ),
        "sync": scenarios.table_scenario(qwen3),
        "features": scenarios.features_scenario(tokenizer(), scenarios.SETTINGS["second"]),
        "async": scenarios.table_scenario(qwen3, {"async": True}),
        "preempted": scenarios.preempted_scenario(qwen3),
        "no-replay": scenarios.no_replay_scenario(qwen3),
        "shared": scenarios.shared_scenario(qwen3),
        "faults": scenarios.faults_scenario(qwen3),
        "faulty": scenarios.faulty_scenario(qwen3),
        "seeds": scenarios.seeds_scenario(qwen3),
        "no-drafts": scenarios.drafts_scenario(tokenizer(), 0),
        "drafts": scenarios.drafts_scenario(tokenizer(), 3),
        "drafts-async": scenarios.drafts_scenario(
            tokenizer(), 3, scenarios.SOME, {"async": True}, engine=scenarios.DRAFTS_CACHE
        ),
        "drafts-model": scenarios.drafts_scenario(tokenizer(), 3, scenarios.SOME, by_model=True),
        "drafts-stock": scenarios.drafts_scenario(
            tokenizer(), 3, scenarios.WITHOUT, tokenlens=False
        ),
        "drafts-kept": scenarios.drafts_scenario(
            tokenizer(), 3, ("soon", "budget", "s1", "soft"), {"no_rewind": True, "no_hold": True}
        ),
    }
    kept = of_every_release(work, ("reasoner", "sync"))
    return run_scenarios(kept, tmp_path_factory.mktemp("second"), second_runner=True)
