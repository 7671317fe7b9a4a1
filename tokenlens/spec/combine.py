"""Which methods may stand in one spec: one loop over what their configs declare.

Knows no method by name. A family that is listed in ``SINGLE`` has one member in a spec; others
(``gate``, and what a method from outside makes up) only group methods for ``requires`` and
``excludes``.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

from tokenlens.spec.base import MethodBase

SINGLE: Mapping[str, str] = {
    "latent": "one of {members}",
    "noise": "one of {members}: one kind of noise at a time",
    "temperature": "one of {members}: one adaptive temperature at a time",
    "budget": "one of them: each ends thinking",
}
"""Families of which a spec has one member, and what is allowed instead of several."""

Members = Callable[[str], Sequence[str]]


def conflict(configs: Sequence[MethodBase], members: Members) -> tuple[str, str] | None:
    """What is wrong with a list of methods, and what is allowed; ``None`` if nothing is.

    Parameters
    ----------
    members
        The names of all methods of a family that a spec may name.
    """
    return next(_conflicts(configs, members), None)


def _conflicts(configs: Sequence[MethodBase], members: Members) -> Iterator[tuple[str, str]]:
    names = [config.method for config in configs]
    for name in names:
        if names.count(name) > 1:
            yield f"{name} twice", f"each method at most once; remove one {name}"
    for one in configs:
        for required, because in one.requires:
            if not any(_is(other, required) for other in configs if other is not one):
                known = sorted(members(required)) or [required]
                yield (
                    f"{one.method} alone",
                    f"{one.method} beside one of {known}, because {because}",
                )
    # A reason that two methods give is more telling than their family's.
    for one in configs:
        for rule in one.excludes:
            for other in configs:
                if other is one or rule.field or not _is(other, rule.other):
                    continue
                yield f"{one.method} and {other.method}", f"one of the two: {rule.because}"
    for family, allowed in SINGLE.items():
        several = [config.method for config in configs if family in config.families]
        if len(several) > 1:
            yield " and ".join(several), allowed.format(members=sorted(members(family)))
    for one in configs:
        for rule in one.excludes:
            for other in configs:
                # A config without the field is not meant.
                has_it = rule.field in type(other).model_fields and _is(other, rule.other)
                if other is not one and has_it and getattr(other, rule.field) == rule.value:
                    got = f"{one.method} with {other.method}.{rule.field} = {rule.value}"
                    yield got, f"{rule.instead}, because {rule.because}"


def _is(config: MethodBase, what: str) -> bool:
    return config.method == what or what in config.families
