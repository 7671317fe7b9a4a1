"""The places in SGLang that tokenlens wraps, found by our own code.

SGLang's hook registry logs a target that it does not find and goes on without it. Here a missing
target ends the start. Wrappers do nothing for engines without tokenlens.
"""

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from types import ModuleType
from typing import Any

from tokenlens.serving.hooks import MARK, after_import

Around = Callable[..., Any]

ADMISSION = "_tokenlens"
"""Attribute of tokenizer managers whose engines run with tokenlens."""

HANDSHAKE = "tokenlens"
"""What a scheduler with tokenlens says of itself when it is ready."""


def missing(*groups: Mapping[str, Iterable[str]]) -> list[str]:
    """Targets that are not there. Imports their modules.

    Parameters
    ----------
    groups
        By module, names of functions (``Class.method``).
    """
    lost = []
    for module_name, names in ((name, names) for group in groups for name, names in group.items()):
        try:
            module = import_module(module_name)
        except ImportError as error:
            lost.append(f"{module_name} ({error})")
            continue
        lost += [f"{module_name}.{name}" for name in names if _find(module, name) is None]
    return lost


def check(*groups: Mapping[str, Iterable[str]]) -> None:
    """End the start if a target is not there.

    Raises
    ------
    SystemExit
        SGLang goes on after any other exception of a plugin.
    """
    lost = missing(*groups)
    if lost:
        raise SystemExit(
            f"tokenlens: not found in this SGLang: {', '.join(lost)}. It would run without them,"
            " and specs would silently not be carried out. Install a tested version (tokenlens"
            " doctor lists them), or start without --enable-tokenlens."
        )


def install(targets: Mapping[str, Mapping[str, Around]], needed: bool = True) -> None:
    """Wrap all targets, now or when their modules are imported; again does nothing.

    Parameters
    ----------
    needed
        Whether a target that is missing ends the start; otherwise it is left out.
    """
    for module_name, names in targets.items():
        after_import(module_name, functools.partial(_install, names, needed))


def _install(names: Mapping[str, Around], needed: bool, module: ModuleType) -> None:
    for name, around in names.items():
        found = _find(module, name)
        if found is not None:
            wrap(*found, around)
        elif needed:
            raise SystemExit(f"tokenlens: not found in this SGLang: {module.__name__}.{name}")


def _find(module: ModuleType, name: str) -> tuple[Any, str] | None:
    owner: Any = module
    *path, last = name.split(".")
    for step in path:
        owner = getattr(owner, step, None)
    return None if owner is None or not hasattr(owner, last) else (owner, last)


def wrap(owner: Any, name: str, around: Around) -> None:
    """Replace ``owner.name`` by ``around(original, *args, **kwargs)``, once.

    Class and static methods stay what they are; a class method's ``original`` takes the class.
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
