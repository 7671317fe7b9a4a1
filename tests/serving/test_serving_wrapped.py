"""The lists of what is wrapped: every one of our functions in them is there, and fits."""

import ast
import inspect
from pathlib import Path

import pytest

import tokenlens
from tokenlens.serving import hooks
from tokenlens.sglang import wrapped as sglang
from tokenlens.vllm import wrapped as vllm

LISTS = {
    "tokenlens.vllm": (vllm.ENGINE, vllm.ENDPOINTS),
    "tokenlens.sglang": (sglang.ALWAYS, sglang.SWITCHED_ON),
}
FOLDER = Path(tokenlens.__file__).parent


@pytest.mark.parametrize("package", LISTS)
def test_what_is_listed_is_there_and_takes_the_original(package):
    named = {ours for targets in LISTS[package] for names in targets.values() for ours in
             names.values()}  # fmt: skip
    for ours in named:
        around = hooks.resolve(ours, package)
        assert next(iter(inspect.signature(around).parameters)) == "original", ours


@pytest.mark.parametrize("package", LISTS)
def test_whatever_takes_an_original_is_listed(package):
    named = {ours for targets in LISTS[package] for names in targets.values() for ours in
             names.values()}  # fmt: skip
    for path in (FOLDER / package.removeprefix("tokenlens.")).glob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                first = node.args.args[0].arg if node.args.args else ""
                assert first != "original" or f"{path.stem}.{node.name}" in named, node.name
