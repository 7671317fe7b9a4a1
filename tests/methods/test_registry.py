"""The one list of methods: folders, configs without torch, steps in the order of their hooks."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "conformance"))

import conformance_table as table

import tokenlens.methods
from tokenlens.core.method import Method
from tokenlens.methods import METHODS
from tokenlens.methods.registry import ORDER, steps
from tokenlens.spec import METHOD_CONFIGS
from tokenlens.trace.records import TraceCounts
from tokenlens.trace.reports import TRIP

FOLDER = Path(tokenlens.methods.__file__).parent
FOLDERS = {path.parent.name for path in FOLDER.glob("*/config.py")}


def test_the_list_is_the_folders():
    assert len(set(ORDER)) == len(ORDER)
    assert set(ORDER) == FOLDERS == {path.parent.name for path in FOLDER.glob("*/step.py")}
    assert list(METHOD_CONFIGS)[: len(ORDER)] == list(ORDER)


@pytest.mark.parametrize("name", ORDER)
def test_a_folder_holds_a_config_and_what_carries_it_out(name):
    config = import_module(f"tokenlens.methods.{name}.config").CONFIG
    assert METHOD_CONFIGS[name] is config
    found = import_module(f"tokenlens.methods.{name}.step").STEPS
    assert found
    assert all(isinstance(one, Method) for one in found)
    assert set(found) <= set(METHODS)
    # Nothing else looks at its requests, and each looks at some of them.
    required = {key: 1 for key, info in config.model_fields.items() if info.is_required()}
    serving = {one for one in METHODS if one.serves(config.model_validate(required))}
    assert serving
    assert serving <= set(found)


def test_every_method_is_in_the_table_that_every_engine_runs():
    rows = [
        *table.METHODS.values(),
        *table.WORD_METHODS.values(),
        *table.SHIFTED.values(),
        *table.PROBED.values(),
        *table.READ.values(),
    ]
    rows += [one.methods or () for one in table.SCENARIOS]
    named = {method["method"] for methods in rows for method in methods}
    # What an engine refuses, its own tests show.
    assert set(ORDER) - named <= frozenset.intersection(*table.REFUSED.values())


def test_what_a_method_counts_has_a_field_of_the_trace():
    # ``others`` is what methods from outside count.
    counted = {name for one in METHODS for name in one.counters}
    assert counted - set(TRIP) <= set(TraceCounts.model_fields)
    assert {"cold_stops", "shifted_steps"} <= counted


def test_steps_are_made_once():
    assert steps() is METHODS
    assert len({one.name for one in METHODS}) == len(METHODS)
    assert METHODS[-1].name == "trace"


def test_configs_are_read_without_torch():
    count = "len(tokenlens.spec.METHOD_CONFIGS)"
    code = f"import sys, tokenlens.spec; print({count}, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(len(ORDER)), "False"]
