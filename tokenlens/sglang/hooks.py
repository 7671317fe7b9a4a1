"""The places in SGLang that tokenlens wraps, found by our own code.

SGLang's hook registry logs a target that it does not find and goes on without it. Here a missing
target ends the start. Wrappers do nothing for engines without tokenlens.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from importlib import import_module
from types import ModuleType
from typing import Any

from tokenlens.vllm.hooks import MARK, after_import

Around = Callable[..., Any]

HANDSHAKE = "tokenlens"
"""What a scheduler with tokenlens says of itself when it is ready."""


def missing(targets: Mapping[str, Mapping[str, Around]]) -> list[str]:
    """Targets that are not there. Imports their modules.

    Parameters
    ----------
    targets
        By module, names of functions (``Class.method``) with what goes around them.
    """
    lost = []
    for module_name, names in targets.items():
        try:
            module = import_module(module_name)
        except ImportError as error:
            lost.append(f"{module_name} ({error})")
            continue
        lost += [f"{module_name}.{name}" for name in names if _find(module, name) is None]
    return lost


def check(targets: Mapping[str, Mapping[str, Around]]) -> None:
    """End the start if a target is not there.

    Raises
    ------
    SystemExit
        SGLang goes on after any other exception of a plugin.
    """
    lost = missing(targets)
    if lost:
        raise SystemExit(
            f"tokenlens: not found in this SGLang: {', '.join(lost)}. It would run without them,"
            " and specs would silently not be carried out. Install a tested version (tokenlens"
            " doctor lists them), or start without --enable-tokenlens."
        )


def install(targets: Mapping[str, Mapping[str, Around]]) -> None:
    """Wrap all targets, now or when their modules are imported; again does nothing."""
    for module_name, names in targets.items():
        after_import(module_name, functools.partial(_install, names))


def _install(names: Mapping[str, Around], module: ModuleType) -> None:
    for name, around in names.items():
        found = _find(module, name)
        if found is None:
            raise SystemExit(f"tokenlens: not found in this SGLang: {module.__name__}.{name}")
        wrap(*found, around)


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
