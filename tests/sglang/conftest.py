"""Fixtures of the SGLang tests: engines run in processes of their own, once for all tests."""

import sys
from functools import partial
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "conformance"))

import outside
from releases import Lazily, of_every_release

from tokenlens import versions

# As the engines of these tests do, so that there is a reference.
outside.allow_here(*outside.NAMES)

if versions.installed("sglang") is not None:
    sys.path.insert(0, str(Path(__file__).parent / "fakes"))
    import fake_torchvision  # noqa: F401  # transformers imports it here as well


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    """Paths of the tiny random models, by name."""
    import conformance_models as models

    folder = tmp_path_factory.mktemp("checkpoints")
    return {name: models.save(name, folder) for name in models.MODELS}


@pytest.fixture(scope="session")
def reference(checkpoints):
    """Hugging Face's ids of the table's greedy scenarios, by model."""
    import conformance_models as models

    own, tokenizer = str(models.REASONER_PATH), reasoner_tokenizer()
    thinks = models.reasoner_scenarios(tokenizer, "sglang")
    makers = {name: partial(models.references, path) for name, path in checkpoints.items()}
    makers["reasoner"] = partial(models.references, own, tokenizer, {}, thinks)
    return Lazily(makers)


@pytest.fixture(scope="session")
def traced():
    """Hugging Face's traces of the reasoner's rows."""
    import conformance_models as models
    from conformance_traces import reference_traces

    thinks = models.reasoner_scenarios(reasoner_tokenizer(), "sglang")
    return reference_traces(str(models.REASONER_PATH), reasoner_tokenizer(), {}, thinks)


def reasoner_tokenizer():
    """The tiny reasoner's."""
    import conformance_models as models
    import transformers

    return transformers.AutoTokenizer.from_pretrained(models.REASONER_PATH)


@pytest.fixture(scope="session")
def engines(checkpoints, tmp_path_factory):
    """Everything that runs without a server, by the name of the job."""
    import conformance_models as models
    import sglang_scenarios as scenarios
    from sglang_support import run_scenarios

    thinks = models.reasoner_scenarios(reasoner_tokenizer(), "sglang")
    question = [{"role": "user", "content": models.QUESTIONS[0]}]
    off = reasoner_tokenizer().apply_chat_template(
        question, add_generation_prompt=True, return_dict=True, enable_thinking=False
    )
    wrong = models.wrong_files(tmp_path_factory.mktemp("files"))
    work = scenarios.work(checkpoints, wrong, thinks, list(off["input_ids"]))
    work = of_every_release(work, ("overlap", "retracted", "reasoner", "stock"))
    return run_scenarios(work, tmp_path_factory.mktemp("engines"))
