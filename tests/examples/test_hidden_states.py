"""The scripts of ``examples/hidden_states`` write files that their methods take."""

import runpy
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from tokenlens import assets, load_spec
from tokenlens.hf import generate_kwargs, traces
from tokenlens.methods import files

FOLDER = Path(__file__).parents[2] / "examples" / "hidden_states"
SMALL = "tiny-reasoner-small"
SCRIPTS = {
    "east": ("east_vector.py", ["--runs", "1", "--samples", "3"]),
    "predictor": ("budget_predictor.py", ["--rollouts", "8", "--steps", "3"]),
    "probe": ("difficulty_probe.py", ["--questions", "8", "--samples", "1"]),
}
CONTROLS = {"east": "random", "predictor": "shuffled", "probe": "shuffled"}


def run(script, arguments, monkeypatch):
    monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
    monkeypatch.syspath_prepend(str(FOLDER))
    runpy.run_path(str(FOLDER / script), run_name="__main__")


@pytest.fixture(scope="module")
def model():
    path = assets.path_of(SMALL)
    tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32), tokenizer


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_s_file_is_one_that_its_method_takes(name, model, tmp_path, monkeypatch, capsys):
    script, arguments = SCRIPTS[name]
    for kind, more in (("", []), (f"-{CONTROLS[name]}", ["--control", CONTROLS[name]])):
        run(script, [SMALL, tmp_path / "file", *arguments, *more], monkeypatch)
        assert "file: " in capsys.readouterr().out
        files.allow({f"{name}{kind}": tmp_path / "file"})
        with safe_open(tmp_path / "file", framework="pt") as file:
            assert file.metadata()["model"] == SMALL
    inputs = model[1]("make 9 using 4,5", return_tensors="pt")
    for path in FOLDER.glob("*.yaml"):
        if name in path.read_text(encoding="utf-8"):
            kwargs = generate_kwargs(model[0], model[1], load_spec(path))
            model[0].generate(**inputs, **kwargs, max_new_tokens=4, do_sample=False)
            assert traces(kwargs)[0].counts.tokens == 4


def test_agents_hand_on_their_thoughts(monkeypatch, capsys):
    run("latent_agents.py", ["--problems", "1", "--steps", "3"], monkeypatch)
    thoughts, alone = capsys.readouterr().out.splitlines()
    # Two agents of three steps each; the last agent finds them in the cache.
    assert "6 latent steps" in thoughts
    found = [int(line.rsplit(" positions", 1)[0].rsplit(" ", 1)[1]) for line in (thoughts, alone)]
    assert found[0] == found[1] + 6
