"""Methods from outside the package: found by name where the operator allows it, checked, placed.

A method is a class with the decorator :func:`method`. Nothing is imported that nobody has named:
the entry points of the group ``tokenlens.methods`` are looked up for the names that a setting of
the engine, an argument or the environment variable ``TOKENLENS_METHODS`` gives. Whatever is wrong
with one ends the start, with its name and the reason; no request goes without its method.
"""

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from tokenlens.errors import MethodError
from tokenlens.spec.base import MethodBase
from tokenlens.spec.installed import GROUP, VARIABLE
from tokenlens.spec.registry import METHOD_CONFIGS, forget, register

if TYPE_CHECKING:
    from tokenlens.core.method import Method

MARK = "__tokenlens_method__"

Class = TypeVar("Class", bound=type)


class Declared(NamedTuple):
    """What the decorator says of a class."""

    config: Any
    after: str


class LetIn(NamedTuple):
    """A method that was let in."""

    kind: type
    method: "Method"
    after: str


_LOADED: dict[str, LetIn] = {}
# A front end admits requests in several threads.
_LOCK = threading.RLock()


def method(config: type[MethodBase], *, after: str) -> Callable[[Class], Class]:
    """Declare a class to be a decoding method. It is let in only where an operator names it.

    Parameters
    ----------
    config
        What a spec may ask of it: a pydantic model whose numbers, texts and lists are bounded.
    after
        The method behind which its hooks run, by name (``docs/reference/methods.md`` has the
        order); ``min_p`` for the last of those that edit logits, ``gate`` for a gate.
    """

    def mark(kind: Class) -> Class:
        setattr(kind, MARK, Declared(config, after))
        return kind

    return mark


def allow(methods: Iterable["str | type[Method]"]) -> tuple[str, ...]:
    """Let methods in: names of entry points, or classes that were declared in this process.

    Returns
    -------
    tuple of str
        Their names.

    Raises
    ------
    MethodError
        One that is missing or broken, with its name and the reason.
    """
    names = []
    with _LOCK:
        before = set(_LOADED)
        try:
            for one in methods:
                name, kind = _named(one)
                _let_in(name, kind)
                names.append(name)
            if set(_LOADED) != before:
                _check_together()
        except BaseException:
            # A start that failed leaves nothing behind.
            for name in set(_LOADED) - before:
                del _LOADED[name]
                forget(name)
            raise
    return tuple(names)


def _named(one: Any) -> tuple[str, Any]:
    """The name, and the class, of what is to be let in."""
    if isinstance(one, str):
        return one, _LOADED[one].kind if one in _LOADED else _found(one)
    declared = getattr(one, MARK, None)
    info = getattr(getattr(declared, "config", None), "model_fields", {}).get("method")
    return str(getattr(info, "default", getattr(one, "__name__", one))), one


def _check_together() -> None:
    """Every method at its place, no two of which count or keep a thing by one name."""
    from tokenlens.core.lifecycle import totals_of

    try:
        totals_of(active())
    except ValueError as error:
        if isinstance(error, MethodError):
            raise
        name = str(error).partition(".")[0]
        raise MethodError.of_method(name, str(error)) from None


def from_environment() -> tuple[str, ...]:
    """The names that the environment variable allows, in its order."""
    given = os.environ.get(VARIABLE, "").split(",")
    return tuple(dict.fromkeys(name.strip() for name in given if name.strip()))


def allow_from_environment() -> tuple[str, ...]:
    """Let in what the environment variable names. Errors as in :func:`allow`."""
    return allow(from_environment())


def outside() -> tuple[str, ...]:
    """Names of the methods that were let in."""
    return tuple(sorted(_LOADED))


def active() -> tuple["Method", ...]:
    """Every method that there is, in the order in which their hooks run.

    Raises
    ------
    MethodError
        A place that there is not.
    """
    from tokenlens.methods.registry import steps

    if not _LOADED:
        return steps()
    order = list(steps())
    # The last method asks only for what nobody else has asked.
    waiting = sorted(_LOADED)
    while waiting:
        # In reverse, so that of two behind one method the first by name comes first.
        here = {one.name for one in order[:-1]} if steps()[-1] is order[-1] else set()
        placed = [name for name in reversed(waiting) if _LOADED[name].after in here]
        if not placed:
            name = waiting[0]
            after = _LOADED[name].after
            allowed = ", ".join(one.name for one in steps()[:-1])
            raise MethodError.of_method(name, f"got after={after!r}; allowed: {allowed}")
        for name in placed:
            index = next(i for i, one in enumerate(order) if one.name == _LOADED[name].after)
            order.insert(index + 1, _LOADED[name].method)
            waiting.remove(name)
    return tuple(order)


def _found(name: str) -> Any:
    """What the entry point of a name stands for."""
    if name in METHOD_CONFIGS:
        raise MethodError.of_method(
            name, "got the name of a method that tokenlens has; allowed: another"
        )
    every = entry_points(group=GROUP)
    entries = [entry for entry in every if entry.name == name]
    if not entries:
        known = ", ".join(sorted({entry.name for entry in every})) or "none"
        raise MethodError.of_method(
            name,
            f"got no entry point of that name in the group {GROUP}; allowed: one of an installed"
            f" package ({known}). Install its package in the environment of the engine",
        )
    if len(entries) > 1:
        values = ", ".join(sorted(f"{entry.value} of {_package(entry)}" for entry in entries))
        raise MethodError.of_method(
            name, f"got {len(entries)} entry points ({values}); allowed: one. Remove a package"
        )
    try:
        return entries[0].load()
    except (Exception, SystemExit) as error:  # somebody else's module
        raise MethodError.of_method(
            name,
            f"got {type(error).__name__} ({error}) while {entries[0].value} was imported; allowed:"
            f" a module that imports. Mend or remove {_package(entries[0])}",
        ) from error


def _package(entry: Any) -> str:
    dist = getattr(entry, "dist", None)
    return "a package" if dist is None else str(dist.name)


def _let_in(name: str, kind: Any) -> None:
    from tokenlens.methods import checks
    from tokenlens.methods.guard import guarded
    from tokenlens.methods.registry import steps

    known = _LOADED.get(name)
    if known is not None and known.kind is kind:
        return
    try:
        if known is not None:
            text = f"got a second class of that name, {kind!r}; allowed: one in a process"
            raise MethodError.of_method(name, text)
        declared: Any = vars(kind).get(MARK) if isinstance(kind, type) else None
        _refuse(name, checks.wrong_class(name, kind, declared))
        made: Any = guarded(kind, name, "latent" in declared.config.family)
        made = made()
        others = (*steps(), *(one.method for one in _LOADED.values()))
        _refuse(name, checks.wrong_parts(name, made, others))
    except MethodError:
        raise
    except (Exception, SystemExit) as error:  # somebody else's class
        text = f"got {type(error).__name__} ({error}) from {kind!r}; allowed: a class that can be"
        raise MethodError.of_method(
            name, f"{text} looked at, and made without arguments"
        ) from error
    # Known from here on: what cannot be registered is taken out again.
    _LOADED[name] = LetIn(kind, made, declared.after)
    try:
        register(declared.config)
    except Exception as error:
        raise MethodError.of_method(name, str(error)) from error


def _refuse(name: str, reasons: Iterator[str]) -> None:
    for reason in reasons:
        raise MethodError.of_method(name, reason)
