"""The environment of a process that runs SGLang on a CPU."""

import os
from pathlib import Path

import outside

FAKES = Path(__file__).parents[1] / "sglang" / "fakes"


def environment(first=(), **extra):
    """All of it; ``first``: folders in front of the path of imports."""
    path = [
        *map(str, first),
        str(FAKES),
        *outside.installed(),
        *filter(None, [os.environ.get("PYTHONPATH")]),
    ]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path),
        "SGLANG_USE_CPU_ENGINE": "1",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONWARNINGS": "ignore",
        "TOKENLENS_TEST_SWITCHES": "1",
        **extra,
    }
