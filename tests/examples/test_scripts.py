"""Examples run as they are written."""

import os
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


def printed_by(script):
    """What an example prints, run from the repository's root as its users run it."""
    done = subprocess.run(
        [sys.executable, script],
        cwd=ROOT, env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_hf_generate_prints_each_row():
    printed = printed_by("examples/hf_generate.py")
    lines = [line for line in printed.splitlines() if line.startswith("row")]
    assert len(lines) == 3
    assert lines[2].startswith("row 2: 0 of")


def test_routing_in_generate_and_in_a_router():
    # The server's example needs real servers: it runs with the router's tests on vLLM.
    printed = printed_by("examples/routing_hf.py")
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
