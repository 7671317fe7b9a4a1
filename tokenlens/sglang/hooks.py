"""Whether everything that tokenlens wraps is there: :mod:`tokenlens.sglang.wrapped` lists it.

SGLang's hook registry logs a target that it does not find and goes on without it. Here a target
that is missing, or that takes other parameters than ours reads, ends the start. Wrappers do nothing
for engines without tokenlens.
"""

from collections.abc import Iterable, Mapping
from importlib import import_module

from tokenlens.serving.hooks import find, looked_up, resolve

PACKAGE = "tokenlens.sglang"

ADMISSION = "_tokenlens"
"""Attribute of tokenizer managers whose engines run with tokenlens."""

HANDSHAKE = "tokenlens"
"""What a scheduler with tokenlens says of itself when it is ready."""


def missing(*groups: Mapping[str, Iterable[str]]) -> list[str]:
    """Targets that are not there or that ours does not fit. Imports their modules.

    Parameters
    ----------
    groups
        By module, names of functions (``Class.method``), and, of what is wrapped, ours around them.
    """
    lost = []
    for module_name, names in ((name, names) for group in groups for name, names in group.items()):
        try:
            module = import_module(module_name)
        except ImportError as error:
            lost.append(f"{module_name} ({error})")
            continue
        for name in names:
            if isinstance(names, Mapping):
                _, why = looked_up(module, name, resolve(names[name], PACKAGE))
                lost += [] if why is None else [why]
            elif find(module, name) is None:
                lost.append(f"{module_name}.{name} (missing)")
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
            f"tokenlens: not found as tested in this SGLang: {', '.join(lost)}. It would run"
            " without them, and specs would silently not be carried out. Install a tested version"
            " (tokenlens doctor lists them), or start without --enable-tokenlens."
        )


def refuse_missing(target: str) -> None:
    """End the start: a target is not there, or is not what ours fits."""
    raise SystemExit(f"tokenlens: not found as tested in this SGLang: {target}")
