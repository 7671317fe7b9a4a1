"""What a class from outside must be before it is let in, beside its config.

Each finding is ``got ...; allowed: ...``. Knows no engine.
"""

import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tokenlens.core.columns import Field
from tokenlens.core.lifecycle import COMMON_FIELDS
from tokenlens.core.method import HOOKS, Method
from tokenlens.core.slots import fits
from tokenlens.methods.guard import AT_ADMISSION
from tokenlens.methods.registry import steps
from tokenlens.spec.installed import NAME
from tokenlens.spec.outside import faults


def wrong_class(name: str, kind: Any, declared: Any) -> Iterator[str]:
    """What is wrong with a class, and with what its decorator said."""
    if not (isinstance(kind, type) and issubclass(kind, Method)):
        yield f"got {kind!r}; allowed: a subclass of tokenlens.methods.Method"
        return
    if declared is None:
        yield f"got {kind.__name__} without a config; allowed: @method(CONFIG, after=...) above it"
        return
    if name in {one.name for one in steps()}:
        yield "got the name of a part of tokenlens; allowed: another"
    if not isinstance(declared.after, str):
        yield f"got after={declared.after!r}; allowed: the name of a method"
    yield from faults(declared.config, name)
    if kind.serves is not Method.serves:
        yield "got serves(); allowed: none, it carries its own config out and no other"
    for hook in (*AT_ADMISSION, *HOOKS):
        ours = list(inspect.signature(getattr(Method, hook)).parameters)
        theirs = inspect.signature(getattr(kind, hook)).parameters
        kinds = {parameter.kind for parameter in theirs.values()}
        if len(theirs) != len(ours) and inspect.Parameter.VAR_POSITIONAL not in kinds:
            yield f"got {hook}({', '.join(theirs)}); allowed: {hook}({', '.join(ours)})"


def wrong_parts(name: str, made: Any, others: Iterable[Method]) -> Iterator[str]:
    """What is wrong with what an instance declares: its name, columns, counters, records.

    Parameters
    ----------
    others
        The methods that are there.
    """
    if getattr(made, "name", None) != name:
        yield f"got an instance of the name {getattr(made, 'name', None)!r}; allowed: {name!r}"
        return
    on = getattr(made, "on", None)
    if not (isinstance(on, Field) and on.kind == "bool" and on.default is False and on.fixed):
        yield f"got self.on = {on!r}; allowed: what Method.__init__ made"
    taken = {column.name for one in others for column in one.fields}
    taken |= {column.name for column in COMMON_FIELDS}
    for column in made.fields:
        if not isinstance(column, Field):
            yield f"got the column {column!r}; allowed: tokenlens.methods.Column"
            return
        if column.name in taken:
            yield f"got the column {column.name} a second time; allowed: names of its own"
        if not _is_sound(name, column):
            yield (
                f"got the column {column.name} of {column.size} {column.kind}, {column.default!r};"
                f" allowed: a name that begins with {name!r} and a dot, a size of 1 to 4096, the"
                " kind int, float or bool, a default of that kind"
            )
        taken.add(column.name)
    if on not in made.fields:
        yield "got fields without self.on; allowed: those that Method.__init__ was given"
    if not isinstance(made.counters, Mapping):
        yield f"got counters = {made.counters!r}; allowed: columns by name"
        return
    for counter, column in made.counters.items():
        if not (isinstance(counter, str) and NAME.fullmatch(counter)):
            yield f"got the counter {counter!r}; allowed: lower-case letters, digits, underscores"
        if column not in made.fields or column.kind != "int" or column.size != 1:
            yield f"got the counter {counter} of {column!r}; allowed: one of its int columns"
    if foreign := set(made.records) - {name}:
        yield f"got the records {sorted(foreign)}; allowed: {name!r}, or none"


def _is_sound(name: str, column: Field) -> bool:
    """Whether a column is its method's own, and a table can be made of it."""
    kinds: dict[str, tuple[type, ...]] = {"int": (int,), "float": (float, int), "bool": (bool,)}
    return (
        isinstance(column.name, str)
        and column.name.startswith(f"{name}.")
        and type(column.size) is int
        and 1 <= column.size <= 4096
        and type(column.default) in kinds.get(column.kind, ())
        and fits(column, column.default)
    )
