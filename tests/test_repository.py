"""Promises about the repository itself."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tokenlens import capabilities

ROOT = Path(__file__).parents[1]
PACKAGES = [ROOT / "tokenlens", ROOT / "kernels" / "tokenlens_kernels"]
SOURCES = [path for package in PACKAGES for path in package.rglob("*.py")]
UNSAFE = re.compile(r"\b(pickle|dill|cloudpickle)\b|torch\.load\(|(?<![.\w])(eval|exec)\(")
PAGES = sorted({*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")})


KNOWN = {
    "spec": {"errors"},
    "methods": {"core", "errors", "spec"},
    "trace": {"errors", "spec"},
    "core": {"errors", "spec", "trace"},
    "serving": {"core", "errors", "methods", "metrics", "spec", "trace"},
    "routing": {"errors", "metrics", "spec"},
    "controllers": {"errors", "metrics", "routing", "spec"},
    "hf": {"controllers", "core", "errors", "methods", "routing", "spec", "trace"},
    "vllm": {"__version__", "core", "errors", "methods", "serving", "spec", "trace"},
    "sglang": {"core", "errors", "methods", "serving", "spec", "trace"},
}
"""Rooms, and what of ours they may import (docs/architecture.md)."""


def rooms_of(text):
    """Our rooms that a file imports, wherever in it; relative imports are not our style."""
    names = [
        alias
        for node in ast.walk(ast.parse(text))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in (
            [f"{node.module}.{one.name}" for one in node.names]
            if isinstance(node, ast.ImportFrom)
            else [one.name for one in node.names]
        )
    ]
    return {name.split(".")[1] for name in names if name.startswith("tokenlens.")}


def unsafe_lines(text):
    """Lines of code that load or run what somebody sent; prose may say that there are none."""
    code = re.sub(r'""".*?"""', "", text, flags=re.DOTALL)
    return [line for line in code.splitlines() if UNSAFE.search(line.split("#")[0])]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_unpickles_or_evaluates(path):
    assert unsafe_lines(path.read_text()) == []


def test_the_search_for_unsafe_calls_finds_them():
    assert unsafe_lines("x = torch.load(f)\nimport pickle\neval('1')\nmodel.eval()\n") == [
        "x = torch.load(f)",
        "import pickle",
        "eval('1')",
    ]


@pytest.mark.parametrize("room", KNOWN)
def test_a_room_knows_only_the_rooms_below_it(room):
    paths = list((ROOT / "tokenlens" / room).rglob("*.py"))
    assert paths
    for path in paths:
        assert rooms_of(path.read_text()) <= {room, *KNOWN[room]}, path


def test_imports_are_found_in_functions_too():
    code = "from tokenlens import core\ndef f():\n    from tokenlens.vllm import trace\n"
    assert rooms_of(code + "    import torch, tokenlens.hf.run\n") == {"vllm", "hf", "core"}


def test_kernels_does_not_shadow_a_package():
    assert not (ROOT / "kernels" / "__init__.py").exists()


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_page_installs_somebody_else_s_package(page):
    assert not re.search(r"pip install [^-\n]*\btokenlens\b(?![-_\w])", page.read_text())


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} -> {target}"


def test_the_readme_has_the_capability_table():
    assert capabilities.markdown() in (ROOT / "README.md").read_text()


def test_importing_the_package_imports_nothing_heavy():
    heavy = ("torch", "transformers", "triton", "vllm", "sglang", "matplotlib")
    code = f"import sys, tokenlens; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_engine_loads_us_by_itself():
    text = (ROOT / "pyproject.toml").read_text()
    # This group is loaded into every vLLM, whatever its settings.
    assert "vllm.logits_processors" not in text
