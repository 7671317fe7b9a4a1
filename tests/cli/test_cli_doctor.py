"""`tokenlens doctor --model` says a model's think markers and how they were found."""

from pathlib import Path

from typer.testing import CliRunner

import tokenlens
from tokenlens.cli.app import app

TINY = Path(tokenlens.__file__).parent / "assets" / "tiny-reasoner-small"


def test_a_model_s_markers_and_how_they_were_found():
    said = CliRunner().invoke(app, ["doctor", "--model", str(TINY)])
    assert said.exit_code == 0, said.output
    assert all(word in said.output for word in ("<think>", "</think>", "found by"))
