"""Promises about the repository itself."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import tokenlens
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
    "vllm": {
        "__version__",
        "capabilities",
        "core",
        "errors",
        "methods",
        "serving",
        "spec",
        "trace",
        "versions",
    },
    "sglang": {"capabilities", "core", "errors", "methods", "serving", "spec", "trace", "versions"},
}
"""Packages, and what of ours they may import (docs/architecture.md)."""


FLOORS = [
    {"errors", "versions"},
    {"assets", "spec"},
    {"capabilities", "trace"},
    {"core", "reference", "metrics"},
    {"methods", "routing"},
    {"controllers", "serving"},
    {"hf", "vllm", "sglang"},
    {"evaluation"},
    {"cli"},
]
"""Packages from the ground up: each imports only what is below it (docs/architecture.md)."""


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


@pytest.mark.parametrize("package", ["core", "methods"])
def test_files_under_the_engines_can_be_read_in_one_go(package):
    for path in (ROOT / "tokenlens" / package).rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 400, path


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


def module_name(path, base):
    """A file's name as a module."""
    parts = path.relative_to(base).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def our_modules():
    """Every module of ours, by name."""
    found = {module_name(path, ROOT): path for path in (ROOT / "tokenlens").rglob("*.py")}
    kernels = (ROOT / "kernels" / "tokenlens_kernels").rglob("*.py")
    return found | {module_name(path, ROOT / "kernels"): path for path in kernels}


def for_types_only(tree):
    """Imports that no interpreter carries out."""
    blocks = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
    ]
    return {one for block in blocks for inner in block.body for one in ast.walk(inner)}


def imports_of(name, text, known, is_package=False):
    """Modules of ours that a module imports, in functions too, but not for types alone."""
    tree = ast.parse(text)
    left_out, package = for_types_only(tree), name if is_package else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(tree):
        if node in left_out:
            continue
        if isinstance(node, ast.Import):
            found.update(one.name for one in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            start = ".".join([*above, *filter(None, [node.module])]) if node.level else node.module
            names = (f"{start}.{one.name}" for one in node.names)
            found.update(one if one in known else start for one in names)
    return (found & set(known)) - {name}


def circles(graph):
    """Groups of modules that reach each other."""
    reach = {}
    for name in graph:
        seen, todo = set(), [name]
        while todo:
            for below in graph[todo.pop()] - seen:
                seen.add(below)
                todo.append(below)
        reach[name] = seen
    return {frozenset(b for b in reach[a] if a in reach[b]) for a in graph if a in reach[a]}


def test_no_modules_import_each_other():
    modules = our_modules()
    graph = {
        name: imports_of(name, path.read_text(), modules, path.name == "__init__.py")
        for name, path in modules.items()
    }
    assert circles(graph) == set()
    # In a package's own file, what it offers comes from below it.
    assert "tokenlens.core.pipeline" in graph["tokenlens.core"]
    assert "tokenlens_kernels.philox" in graph["tokenlens_kernels"]


def test_circles_are_found_in_functions_and_left_alone_for_types():
    known = {"a": "", "a.b": "", "a.c": ""}
    inner = imports_of("a.b", "def f():\n    from a.c import x\n", known)
    assert inner == {"a.c"}
    assert imports_of("a.b", "from .c import x\n", known) == {"a.c"}
    types = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from a.c import x\n"
    assert imports_of("a.b", types, known) == set()
    graph = {"a": set(), "a.b": {"a.c"}, "a.c": {"a.b", "a"}}
    assert circles(graph) == {frozenset({"a.b", "a.c"})}


def test_no_import_runs_upwards():
    floor = {name: height for height, names in enumerate(FLOORS) for name in names}
    modules = our_modules()
    for name, path in modules.items():
        parts = name.split(".")
        if parts[0] != "tokenlens" or len(parts) < 2:
            continue
        assert parts[1] in floor, f"{name} is on no floor"
        for below in imports_of(name, path.read_text(), modules, path.name == "__init__.py"):
            top = below.split(".")
            if top[0] == "tokenlens" and len(top) > 1 and top[1] != parts[1]:
                assert floor[top[1]] < floor[parts[1]], f"{name} imports {below}"


def test_the_version_stands_in_one_place():
    assert 'dynamic = ["version"]' in (ROOT / "pyproject.toml").read_text()
    assert f"\nversion: {tokenlens.__version__}\n" in (ROOT / "CITATION.cff").read_text()
