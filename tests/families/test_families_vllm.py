"""One vLLM engine a model, both runners: soft, Gumbel and plain rows, replayed; images as well."""

import json
import os
import subprocess
import sys
from pathlib import Path

import family_table
import pytest
import sight_table
from family_sight import CLASSES
from servers import VLLM_ENVIRONMENT

from tokenlens import versions

HERE = Path(__file__).parent
needs_vllm = pytest.mark.skipif(
    versions.installed("vllm") is None, reason="vLLM is not installed here"
)
pytestmark = pytest.mark.timeout(3000)  # all engines of a runner are started for the first test

EVERY = os.environ.get("TOKENLENS_FAMILIES") == "all"
# A plain one with deepstack, and one whose per-layer embeddings are mixed as well
FIRST = (*family_table.ON_VLLM, *CLASSES) if EVERY else ("qwen3_vl", "gemma4")
SECOND = ("qwen3", *CLASSES) if EVERY else ("gemma4",)


def run(names, folder, second_runner):
    environment = {**os.environ, **VLLM_ENVIRONMENT, "PYTHONWARNINGS": "ignore"}
    # Model files of classes that see import torchvision, of which nothing is called: its build for
    # accelerators lies in a folder of its own, and the fake beside it lets it be imported on a CPU.
    vision = Path(sys.prefix) / "vision"
    path = [str(HERE), str(HERE.parent / "sglang" / "fakes"), str(vision)]
    path += filter(None, [os.environ.get("PYTHONPATH")])
    if second_runner:
        environment["TRITON_INTERPRET"] = "1"
        path.insert(0, str(HERE.parent / "vllm" / "interpreter"))
    environment["PYTHONPATH"] = os.pathsep.join(path)
    done = subprocess.run(
        [sys.executable, str(HERE / "family_vllm.py"), str(folder / "found.json"), *names],
        env={**environment, "VLLM_CACHE_ROOT": str(folder / "cache")},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return json.loads((folder / "found.json").read_text())


@pytest.fixture(scope="module")
def runners(tmp_path_factory):
    """What each runner gave, once it is asked for."""
    made = {}

    def of(second):
        if second not in made:
            names = SECOND if second else FIRST
            tried = family_table.NOT_ON_VLLM if EVERY and not second else ()
            made[second] = run((*names, *tried), tmp_path_factory.mktemp("families"), second)
            if EVERY:
                sight_table.store("2" if second else "1", made[second])
            if EVERY and not second:
                family_table.store("vllm", made[second])
        return made[second]

    return of


@needs_vllm
@pytest.mark.slow
@pytest.mark.parametrize(
    ("second", "name"),
    [*((False, name) for name in FIRST), *((True, name) for name in SECOND)],
)
def test_what_was_fed_is_what_the_traces_say(runners, second, name):
    found = runners(second)[name]
    if name in CLASSES:
        assert sight_table.verdict(name, found) is None
        return
    assert family_table.wrong(found) is None
