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
"""Packages, and what of ours they may import (docs/architecture.md)."""


def packages_of(text):
    """Our packages that a file imports, wherever in it; relative imports are not our style."""
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


@pytest.mark.parametrize("package", KNOWN)
def test_a_package_knows_only_those_below_it(package):
    paths = list((ROOT / "tokenlens" / package).rglob("*.py"))
    assert paths
    for path in paths:
        assert packages_of(path.read_text()) <= {package, *KNOWN[package]}, path


def test_imports_are_found_in_functions_too():
    code = "from tokenlens import core\ndef f():\n    from tokenlens.vllm import trace\n"
    assert packages_of(code + "    import torch, tokenlens.hf.run\n") == {"vllm", "hf", "core"}


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


def public_classes(text):
    """Names of classes that somebody may import, or see in an error."""
    nodes = ast.walk(ast.parse(text))
    return [n.name for n in nodes if isinstance(n, ast.ClassDef) and not n.name.startswith("_")]


def test_no_two_public_classes_share_a_name():
    places = {}
    for path in SOURCES:
        for name in public_classes(path.read_text()):
            places.setdefault(name, []).append(str(path.relative_to(ROOT)))
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_public_classes_are_found_in_functions_too():
    code = "class A: ...\nclass _B: ...\ndef f():\n    class C(A):\n        class D: ...\n"
    assert sorted(public_classes(code)) == ["A", "C", "D"]
