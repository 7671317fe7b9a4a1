"""The lists of what is wrapped: every one of our functions in them is there, and fits."""

import ast
import functools
import inspect
import sys
from pathlib import Path
from types import ModuleType

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


class Owner:
    """Functions of an engine, of every kind."""

    def plain(self, request, other=None):
        return request

    def renamed(self, one_request, other=None):
        return one_request

    def swapped(self, other, request):
        return request

    def longer(self, request, other=None, more=None):
        return request

    async def awaited(self, request, other=None):
        return request

    async def streamed(self, request, other=None):
        yield request

    @classmethod
    def of_class(cls, request, other=None):
        return request

    @functools.wraps(plain)
    def decorated(self, *args, **kwargs):
        return self.plain(*args, **kwargs)

    def hidden(*args, **kwargs):
        return args


def first(original, self, request, *args, **kwargs):
    return original(self, request, *args, **kwargs)


def every(original, self, request, other):
    return original(self, request, other)


async def waits(original, self, request, *args, **kwargs):
    return await original(self, request, *args, **kwargs)


def in_class(original, cls, request, *args, **kwargs):
    return original(cls, request, *args, **kwargs)


FITS = {
    "plain": {"first": True, "every": True, "waits": False, "in_class": False},
    "renamed": {"first": False, "every": False, "waits": False},
    "swapped": {"first": False, "every": False},
    "longer": {"first": True, "every": False},
    "awaited": {"first": False, "waits": True},
    "streamed": {"first": True, "waits": False},
    "of_class": {"first": False, "in_class": True},
    "decorated": {"first": True, "every": True, "waits": False},
    "hidden": {"first": True, "every": True, "waits": True},
}


@pytest.mark.parametrize(
    ("name", "around", "fits"),
    [(name, around, fits) for name, row in FITS.items() for around, fits in row.items()],
)
def test_ours_stands_around_what_it_names(name, around, fits):
    why = hooks.misfit(Owner, name, globals()[around])
    assert (why is None) is fits, why
    if not fits:
        assert "got: " in why
        assert "allowed: " in why


def test_what_does_not_fit_is_left_as_it_is_and_said(monkeypatch):
    module = ModuleType("tokenlens_test_engine")
    module.Owner = type("Owner", (), dict(vars(Owner)))
    ours = ModuleType("tokenlens_test_ours.around")
    ours.first = first
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(sys.modules, ours.__name__, ours)
    before = {name: vars(module.Owner)[name] for name in ("plain", "renamed")}
    said = []
    targets = {module.__name__: dict.fromkeys(
        ("Owner.plain", "Owner.renamed", "Owner.gone"), "around.first"
    )}  # fmt: skip
    hooks.install(targets, "tokenlens_test_ours", said.append)
    assert said == [
        "tokenlens_test_engine.Owner.renamed (got: (self, one_request, other);"
        " allowed: (self, request, *args, **kwargs))",
        "tokenlens_test_engine.Owner.gone (missing)",
    ]
    assert vars(module.Owner)["renamed"] is before["renamed"]
    assert vars(module.Owner)["plain"] is not before["plain"]
    # Again, around what is wrapped already: nothing.
    hooks.install(targets, "tokenlens_test_ours")
    assert module.Owner().plain(1) == 1
