"""One SGLang engine a model: soft, Gumbel and plain rows, replayed; images as well."""

import json
import os
import subprocess
import sys
from pathlib import Path

import family_table
import pytest
import sight_table
from family_sight import CLASSES
from sglang_environment import environment

from tokenlens import versions
from tokenlens.sglang.refusals import MULTIMODAL

HERE = Path(__file__).parent
pytestmark = [
    pytest.mark.timeout(3000),  # all engines are started for the first test
    pytest.mark.skipif(versions.installed("sglang") is None, reason="SGLang is not installed here"),
]

EVERY = os.environ.get("TOKENLENS_FAMILIES") == "all"
SEEING = tuple(name for name, sight in CLASSES.items() if sight.model in MULTIMODAL)
RIGHT = (*family_table.ON_SGLANG, *SEEING)
# One whose table of embeddings is of a kind of its own, and one that sees, with deepstack
NAMES = RIGHT if EVERY else ("gemma3_text", "qwen3_vl")
# Those that are not right are stored with what is wrong.
WRONG = (*family_table.NOT_ON_SGLANG, *(name for name in CLASSES if name not in SEEING))
TRIED = (*RIGHT, *WRONG) if EVERY else NAMES


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("families")
    done = subprocess.run(
        [sys.executable, str(HERE / "family_sglang.py"), "found.json", *TRIED],
        env=environment([HERE], TOKENLENS_TEST_UNTOUCHED=str(folder / "untouched.json")),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=2900,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    results = json.loads((folder / "found.json").read_text())
    if EVERY:
        sight_table.store("sglang", results)
        family_table.store("sglang", results)
    return {**results, "untouched": json.loads((folder / "untouched.json").read_text())}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_what_was_fed_is_what_the_traces_say(found, name):
    if name in CLASSES:
        assert sight_table.verdict(name, found[name]) is None
        return
    assert family_table.wrong(found[name]) is None


@pytest.mark.slow
def test_rows_that_asked_for_nothing_were_compared_bit_by_bit(found):
    # The scheduler of the engine ends where one differs.
    assert found["untouched"]["rows"] > 20
