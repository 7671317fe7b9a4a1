"""Servers that must not start, and the examples: as a user runs them, in processes of their own."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from sglang_engine_process import ENGINE
from sglang_support import environment, needs_sglang

from tokenlens import versions

pytestmark = [needs_sglang, pytest.mark.slow, pytest.mark.timeout(1200)]

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "tokenlens" / "assets" / "tiny-reasoner-small"


def run(*command, **extra):
    """A command, its status and what it said."""
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        env=environment(**extra),
        capture_output=True,
        text=True,
        timeout=1000,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("flags", "extra", "words"),
    [
        (
            ["--enable-tokenlens"],
            {
                "TOKENLENS_TEST_LOST": "sglang.srt.managers.schedule_batch Req update_finish_state",
            },
            ["not found as tested in this SGLang", "schedule_batch.Req.update_finish_state"],
        ),
        (
            ["--enable-tokenlens"],
            {"TOKENLENS_TEST_VERSION": "0.4.6.post1"},
            ["0.4.6.post1", f"allowed: {versions.supported('sglang')}", "TOKENLENS_ANY_SGLANG"],
        ),
        (
            ["--tokenlens-max-entries", "32"],
            {},
            ["max_entries", "without --enable-tokenlens"],
        ),
        (
            ["--enable-tokenlens", "--tokenlens-methods", "unmade"],
            {},
            ["method 'unmade'", "OSError", "no such file"],
        ),
    ],
    ids=["hook", "version", "flag", "method"],
)
def test_a_server_does_not_start(flags, extra, words):
    more = ["--device", "cpu", "--attention-backend", "torch_native", "--disable-cuda-graph"]
    start = ["-m", "sglang.launch_server", "--model-path", MODEL]
    status, _, error = run(*start, *more, *flags, **extra)
    assert status != 0
    assert all(word in error for word in words), error[-3000:]


def test_the_offline_example():
    settings = {key: value for key, value in ENGINE.items() if key != "skip_tokenizer_init"}
    script = ROOT / "examples" / "sglang_offline.py"
    status, out, error = run(script, "tiny-reasoner-small", "tiny-soft", json.dumps(settings))
    assert status == 0, error[-4000:]
    plain, soft, recorded = out.split("--- ")[1:]
    assert "fed as mixtures" not in plain
    for text in (soft, recorded):
        latent, tokens = map(int, re.search(r"^\[(\d+) of (\d+) tokens", text, re.M).groups())
        assert 0 < latent <= tokens


def test_doctor():
    status, out, error = run(
        "-c", "from tokenlens.cli.app import app; app()", "doctor", COLUMNS="300"
    )
    assert status == 0, error[-2000:]
    assert re.search(r"SGLang .* sglang 0\.5\.23", out)
    assert re.search(r"SGLang: plugin .* found; it adds --enable-tokenlens", out)


def test_tables_that_cannot_be_mixed_are_refused():
    status, out, error = run(Path(__file__).parent / "sglang_tables.py")
    assert status == 0, error[-3000:]
    assert out.strip().endswith("fine")
