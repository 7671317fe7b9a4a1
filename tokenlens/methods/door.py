"""Methods from outside the package: found by name where the operator allows it, checked, placed.

A method is a class with the decorator :func:`method`. Nothing is imported that nobody has named:
the entry points of the group ``tokenlens.methods`` are looked up for the names that a setting of
the engine, an argument or the environment variable ``TOKENLENS_METHODS`` gives. Whatever is wrong
with one ends the start, with its name and the reason; no request goes without its method.
"""

import inspect
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from tokenlens.errors import MethodError
from tokenlens.spec.base import MethodBase
from tokenlens.spec.outside import faults
from tokenlens.spec.registry import METHOD_CONFIGS, forget, register

if TYPE_CHECKING:
    from tokenlens.core.method import Method

GROUP = "tokenlens.methods"
VARIABLE = "TOKENLENS_METHODS"
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
        for one in methods:
            if isinstance(one, str):
                name = one
                kind = _LOADED[name].kind if name in _LOADED else _found(name)
            else:
                declared = getattr(one, MARK, None)
                info = getattr(getattr(declared, "config", None), "model_fields", {}).get("method")
                name, kind = str(getattr(info, "default", getattr(one, "__name__", one))), one
            _let_in(name, kind)
            names.append(name)
        if names:
            active()
    return tuple(names)


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
            after = _LOADED.pop(name).after
            forget(name)
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
    known = _LOADED.get(name)
    if known is not None and known.kind is kind:
        return
    reason = next(_reasons(name, kind), None)
    if reason is not None:
        raise MethodError.of_method(name, reason)
    declared: Declared = getattr(kind, MARK)
    try:
        made = kind()
    except Exception as error:  # somebody else's constructor
        raise MethodError.of_method(
            name,
            f"got {type(error).__name__} ({error}) from {kind.__name__}(); allowed: an instance",
        ) from error
    reason = _wrong_columns(name, made)
    if reason is not None:
        raise MethodError.of_method(name, reason)
    try:
        register(declared.config)
    except ValueError as error:
        raise MethodError.of_method(name, str(error)) from None
    _LOADED[name] = LetIn(kind, made, declared.after)


def _reasons(name: str, kind: Any) -> Iterator[str]:
    from tokenlens.core.method import HOOKS, Method

    if name in _LOADED:
        yield f"got a second class of that name, {kind!r}; allowed: one in a process"
        return
    if not (isinstance(kind, type) and issubclass(kind, Method)):
        yield f"got {kind!r}; allowed: a subclass of tokenlens.methods.Method"
        return
    declared = kind.__dict__.get(MARK)
    if declared is None:
        yield f"got {kind.__name__} without a config; allowed: @method(CONFIG, after=...) above it"
        return
    yield from faults(declared.config, name)
    for hook in HOOKS:
        ours = list(inspect.signature(getattr(Method, hook)).parameters)
        theirs = inspect.signature(getattr(kind, hook)).parameters
        kinds = {parameter.kind for parameter in theirs.values()}
        if len(theirs) != len(ours) and inspect.Parameter.VAR_POSITIONAL not in kinds:
            yield f"got {hook}({', '.join(theirs)}); allowed: {hook}({', '.join(ours)})"


def _wrong_columns(name: str, made: "Method") -> str | None:
    from tokenlens.core.columns import Field
    from tokenlens.core.lifecycle import COMMON_FIELDS
    from tokenlens.methods.registry import steps

    if getattr(made, "name", None) != name:
        return f"got an instance of the name {getattr(made, 'name', None)!r}; allowed: {name!r}"
    others: Sequence[Any] = (*steps(), *(one.method for one in _LOADED.values()))
    taken = {column.name for one in others for column in one.fields}
    taken |= {column.name for column in COMMON_FIELDS}
    counters = {counter for one in others for counter in one.counters}
    for column in made.fields:
        if not isinstance(column, Field):
            return f"got the column {column!r}; allowed: tokenlens.methods.Column"
        if column.name in taken:
            return f"got the column {column.name} a second time; allowed: names of its own"
        if not column.name.startswith(f"{name}.") or not 1 <= column.size <= 4096:
            return (
                f"got the column {column.name} of {column.size}; allowed: a name that begins with"
                f" {name!r} and a dot, a size of 1 to 4096"
            )
        taken.add(column.name)
    if clash := counters.intersection(made.counters):
        return f"got the counters {sorted(clash)}; allowed: names of their own"
    if foreign := set(made.records) - {name}:
        return f"got the records {sorted(foreign)}; allowed: {name!r}, or none"
    return None
