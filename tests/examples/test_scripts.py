"""Examples run as they are written."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tokenlens import assets, load_spec
from tokenlens.hf import generate_kwargs

ROOT = Path(__file__).parents[2]
SMALL = assets.path_of("tiny-reasoner-small")


def printed_by(script, folder):
    """What an example prints, run from any folder."""
    done = subprocess.run(
        [sys.executable, ROOT / script],
        cwd=folder, env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert os.listdir(folder) == []
    return done.stdout


def test_hf_generate_prints_each_row(tmp_path):
    printed = printed_by("examples/hf_generate.py", tmp_path)
    lines = [line for line in printed.splitlines() if line.startswith("row")]
    assert len(lines) == 3
    assert lines[2].startswith("row 2: 0 of")


def test_routing_in_generate_and_in_a_router(tmp_path):
    # The server's example needs real servers: it runs with the router's tests on vLLM.
    printed = printed_by("examples/routing_hf.py", tmp_path)
    assert "steps by the large model: " in printed
    assert {"small", "large"} <= set(printed.split())
    assert printed.count(" nats") > 3


@pytest.mark.parametrize("path", sorted((ROOT / "examples" / "specs").glob("*.yaml")))
def test_example_specs_load(path):
    assert load_spec(path).methods


def test_the_custom_generate_folder_is_the_same_as_the_kwargs():
    tokenizer = AutoTokenizer.from_pretrained(SMALL, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(SMALL, dtype=torch.float32)
    text = "<|im_start|>user\nmake 9 using 4,5<|im_end|>\n<|im_start|>assistant\n"
    inputs = tokenizer(text, return_tensors="pt", add_special_tokens=False)
    settings = {"max_new_tokens": 24, "do_sample": False}
    direct = model.generate(**inputs, **settings, **generate_kwargs(model, tokenizer, "tiny-soft"))
    recipe = model.generate(
        **inputs,
        **settings,
        custom_generate=str(ROOT / "examples" / "custom_generate"),
        trust_remote_code=True,
        tokenlens_spec="tiny-soft",
        tokenizer=tokenizer,
    )
    assert direct.tolist() == recipe.tolist()


SCRIPTS = sorted([*ROOT.glob("examples/*.py"), *ROOT.glob("benchmarks/*.py")])


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_names_no_path_of_the_folder_that_it_is_called_from(path):
    code = re.sub(r'^""".*?"""', "", path.read_text(), flags=re.DOTALL)
    assert re.findall(r'"(?:examples|benchmarks|docs|tests)/[^"]*"', code) == []


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_missing_package_is_a_sentence(path, tmp_path):
    # -S: an environment without any package.
    done = subprocess.run(
        [sys.executable, "-S", path],
        cwd=tmp_path, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    if path.stem not in ("sentences", "vllm_decode", "sglang_decode"):
        assert done.returncode == 1
        assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("name", ["vllm_client", "sglang_client", "routing_client"])
def test_a_client_without_a_server_says_so(name, tmp_path):
    pytest.importorskip("openai")
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / f"{name}.py", "http://127.0.0.1:9/v1"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert "no server answers" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is an accelerator")
def test_sglang_without_an_accelerator_says_what_to_pass(tmp_path):
    (tmp_path / "sglang.py").write_text('__version__ = "fake"\n')
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "sglang_offline.py"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert '{"device": "cpu"}' in done.stderr
    assert "Traceback" not in done.stderr
