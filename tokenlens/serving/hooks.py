"""Wrapping functions of modules that may not be imported yet. Knows no engine."""

import functools
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

MARK = "__tokenlens_original__"

Around = Callable[..., Any]
"""``around(original, *args, **kwargs)``."""

Targets = Mapping[str, Mapping[str, str]]
"""By the engine's module: its functions (``Class.method``), and the module and the name of ours."""


def wrap(owner: Any, name: str, around: Around) -> None:
    """Replace ``owner.name`` by ``around(original, *args, **kwargs)``, once.

    Class and static methods stay what they are; a class method's ``original`` takes the class.

    Raises
    ------
    AttributeError
        The owner has no such function: another version than those that were tested.
    """
    raw = inspect.getattr_static(owner, name)
    kind = type(raw) if isinstance(raw, (classmethod, staticmethod)) else None
    original = raw.__func__ if kind is not None else getattr(owner, name)
    if getattr(original, MARK, None) is around:
        return

    @functools.wraps(original)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return around(original, *args, **kwargs)

    setattr(wrapper, MARK, around)
    setattr(owner, name, wrapper if kind is None else kind(wrapper))


def find(module: ModuleType, name: str) -> tuple[Any, str] | None:
    """The owner of a function (``Class.method`` or ``function``) and its name there."""
    owner: Any = module
    *path, last = name.split(".")
    for step in path:
        owner = getattr(owner, step, None)
    return None if owner is None or not hasattr(owner, last) else (owner, last)


def install(targets: Targets, package: str, missing: Callable[[str], None] | None = None) -> None:
    """Wrap all targets, now or when their modules are imported; again does nothing.

    Parameters
    ----------
    targets
        By the engine's module, its functions and ours around them: see :data:`Targets`.
    package
        Where ours are.
    missing
        Called with a target that is not there; ``None``: it is left out.
    """
    for module_name, names in targets.items():
        after_import(module_name, functools.partial(_install, names, package, missing))


def _install(
    names: Mapping[str, str],
    package: str,
    missing: Callable[[str], None] | None,
    module: ModuleType,
) -> None:
    for name, ours in names.items():
        found = find(module, name)
        if found is not None:
            wrap(*found, resolve(ours, package))
        elif missing is not None:
            missing(f"{module.__name__}.{name}")


def resolve(ours: str, package: str) -> Around:
    """One of our functions, ``module.function``: its module is imported only now."""
    module_name, _, name = ours.rpartition(".")
    around: Around = getattr(importlib.import_module(f"{package}.{module_name}"), name)
    return around


class _AfterImport(importlib.abc.MetaPathFinder):
    """Calls back once a module has been executed."""

    def __init__(self) -> None:
        self.waiting: dict[str, list[Callable[[ModuleType], None]]] = {}
        self._inside = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if self._inside or fullname not in self.waiting:
            return None
        self._inside = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._inside = False
        if spec is None or spec.loader is None:
            return None
        loader, run = spec.loader, spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            run(module)
            for callback in self.waiting.pop(fullname, ()):
                callback(module)

        loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


_FINDER = _AfterImport()


def after_import(name: str, callback: Callable[[ModuleType], None]) -> None:
    """Call back with a module: now if it is there, otherwise once it has been imported."""
    module = sys.modules.get(name)
    initialising = getattr(getattr(module, "__spec__", None), "_initializing", False)
    if module is not None and not initialising:
        callback(module)
        return
    if _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)
    _FINDER.waiting.setdefault(name, []).append(callback)
