"""The tensors that an object holds: found by the way to them, and exchanged in a copy.

Looks into containers and into the core's own objects that hold state; all else is shared.
"""

import copy
from collections.abc import Iterator
from functools import reduce
from typing import Any

from torch import Tensor

Path = tuple[tuple[bool, Any], ...]
"""How to get from an object to a tensor in it: attribute names (True) and keys (False)."""


def _inside(thing: object) -> bool:
    """Whether an object is one of the core's own that holds state: others are shared."""
    if isinstance(thing, type) or not type(thing).__module__.startswith("tokenlens.core"):
        return False
    frozen = getattr(getattr(thing, "__dataclass_params__", None), "frozen", False)
    return hasattr(thing, "__dict__") and not frozen


def _parts(thing: Any) -> Iterator[tuple[tuple[bool, Any], Any]]:
    if isinstance(thing, dict):
        yield from (((False, key), value) for key, value in thing.items())
    elif isinstance(thing, (list, tuple)):
        yield from (((False, index), value) for index, value in enumerate(thing))
    elif _inside(thing):
        yield from (((True, name), value) for name, value in vars(thing).items())


def tensors_of(thing: object) -> dict[Path, Tensor]:
    """Every tensor that an object holds, each once, by the way to it."""
    found: dict[Path, Tensor] = {}
    seen: set[int] = set()

    def look(at: Any, path: Path) -> None:
        if id(at) in seen:
            return
        seen.add(id(at))
        if isinstance(at, Tensor):
            found[path] = at
            return
        for step, part in _parts(at):
            look(part, (*path, step))

    look(thing, ())
    return found


def at(thing: Any, path: Path) -> Any:
    """What lies at the end of a way."""
    return reduce(lambda now, step: getattr(now, step[1]) if step[0] else now[step[1]], path, thing)


def replaced(thing: Any, new: dict[int, Tensor]) -> Any:
    """A copy with other tensors in it, by the identity of the old; what holds none is shared."""
    done: dict[int, Any] = {}

    def copied(at: Any) -> Any:
        if isinstance(at, Tensor):
            return new.get(id(at), at)
        if id(at) in done:
            return done[id(at)]
        made: Any
        if isinstance(at, dict):
            made = copy.copy(at)
            made.update({key: copied(value) for key, value in at.items()})
        elif isinstance(at, list):
            made = [copied(value) for value in at]
        elif isinstance(at, tuple):
            values = [copied(value) for value in at]
            made = type(at)(*values) if hasattr(at, "_fields") else tuple(values)
        elif _inside(at):
            made = done[id(at)] = copy.copy(at)
            for name, value in vars(at).items():
                vars(made)[name] = copied(value)
        else:
            made = at
        done[id(at)] = made
        return made

    return copied(thing)
