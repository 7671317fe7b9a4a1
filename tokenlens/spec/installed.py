"""Which methods from outside are installed, by name: nothing of them is imported."""

import re
from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points

NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
"""What a method from outside may be called."""

GROUP = "tokenlens.methods"
"""The group of entry points."""

VARIABLE = "TOKENLENS_METHODS"
"""A variable of the environment: names that are let in, commas between several."""


@cache
def installed() -> Mapping[str, str]:
    """Distribution and version by entry point, of what is installed; nothing of it is imported."""
    found: dict[str, str] = {}
    for entry in entry_points(group=GROUP):
        dist = entry.dist
        found[entry.name] = "a package" if dist is None else f"{dist.name} {dist.version}"
    return found


def how_to_allow(name: object) -> str:
    """How an operator lets a method in that is installed; empty for what is not."""
    if not isinstance(name, str) or not NAME.fullmatch(name) or name not in installed():
        return ""
    setting = f"additional_config={{'tokenlens': {{'methods': ['{name}']}}}}"
    return (
        f"{name} of {installed()[name]} is not let in here; the operator can: {setting} of vLLM,"
        f" --tokenlens-methods {name} of SGLang, methods=['{name}'] of generate_kwargs, or"
        f" {VARIABLE}={name}"
    )
