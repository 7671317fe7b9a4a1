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


def misfit(owner: Any, name: str, around: Around) -> str | None:
    """Why ours cannot stand around an engine's function, ``None`` if it can.

    What ours names, it reads: the engine's function has parameters of these names, in this order,
    and is awaited or iterated as ours is. Ours takes everything else as ``*args, **kwargs``.
    """
    function = inspect.getattr_static(owner, name)
    function = inspect.unwrap(getattr(function, "__func__", function))
    try:
        theirs = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # not written in Python: nothing says what it takes
        return None
    if {one.kind for one in theirs} == {
        inspect.Parameter.VAR_POSITIONAL,
        inspect.Parameter.VAR_KEYWORD,
    }:
        return None  # somebody's wrapper, which does not say what it is around
    # A function of ours passes on what it gets; what has to be awaited, it would not await.
    if (_kind(function), _kind(around)) not in _FITTING:
        return f"got: {_kind(function)}; allowed: {_kind(around)}"
    ours = list(inspect.signature(around).parameters.values())[1:]
    names = [one.name for one in ours if one.kind is one.POSITIONAL_OR_KEYWORD]
    found = [
        one.name for one in theirs if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)
    ]
    passes_on = any(one.kind is one.VAR_POSITIONAL for one in ours)
    if found[: len(names)] == names and (passes_on or len(theirs) == len(names)):
        return None
    allowed = ", ".join([*names, *["*args", "**kwargs"] * passes_on])
    return f"got: ({', '.join(map(_short, theirs))}); allowed: ({allowed})"


def _short(parameter: inspect.Parameter) -> str:
    bare = parameter.replace(annotation=inspect.Parameter.empty, default=inspect.Parameter.empty)
    return str(bare)


_COROUTINE, _STREAM, _PLAIN = "coroutine function", "asynchronous generator function", "function"
_FITTING = {(_COROUTINE, _COROUTINE), (_STREAM, _STREAM), (_PLAIN, _PLAIN), (_STREAM, _PLAIN)}


def _kind(function: Any) -> str:
    if inspect.iscoroutinefunction(function):
        return _COROUTINE
    return _STREAM if inspect.isasyncgenfunction(function) else _PLAIN


def looked_up(
    module: ModuleType, name: str, around: Around
) -> tuple[tuple[Any, str] | None, str | None]:
    """What :func:`find` finds, and why ours cannot be there, with its name; ``None`` if it can."""
    found = find(module, name)
    why = "missing" if found is None else misfit(*found, around)
    return found, None if why is None else f"{module.__name__}.{name} ({why})"


def install(targets: Targets, package: str, missing: Callable[[str], None] | None = None) -> None:
    """Wrap all targets, now or when their modules are imported; again does nothing.

    Parameters
    ----------
    targets
        By the engine's module, its functions and ours around them: see :data:`Targets`.
    package
        Where ours are.
    missing
        Called with a target that is not there or that ours does not fit, and why; ``None``: it is
        left out.
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
        around = resolve(ours, package)
        found, why = looked_up(module, name, around)
        if found is not None and why is None:
            wrap(*found, around)
        elif missing is not None and why is not None:
            missing(why)


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
