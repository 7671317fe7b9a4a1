"""A spec can be written and checked where no tensor library is installed."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "triton", "vllm", "sglang", "numpy", "tokenlens_kernels")


def _loaded_after(statement):
    code = f"{statement}\nimport sys\nprint(*sorted({{m.split('.')[0] for m in sys.modules}}))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


@pytest.mark.parametrize(
    "statement",
    [
        "import tokenlens",
        "import tokenlens.spec",
        "import tokenlens; tokenlens.parse_spec('qwen3-soft').model_dump_json()",
        "import tokenlens.trace",
    ],
)
def test_no_heavy_import(statement):
    assert not _loaded_after(statement) & set(HEAVY)


def test_the_check_sees_a_heavy_import():
    assert "torch" in _loaded_after("import tokenlens.core")
