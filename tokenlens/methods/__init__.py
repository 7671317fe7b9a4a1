"""What each method does: a folder a method, its config and its step, and their list.

What the author of a method from outside needs is here (``docs/guides/write_a_method.md``).
"""

from importlib import import_module
from typing import Any

from tokenlens.methods.door import active, allow, method

_LATE = {
    "METHODS": ("tokenlens.methods.registry", "METHODS"),
    "Method": ("tokenlens.core.method", "Method"),
    "Admission": ("tokenlens.core.method", "Admission"),
    "Column": ("tokenlens.core.columns", "Field"),
    "Need": ("tokenlens.spec.needs", "Need"),
    "Phase": ("tokenlens.core.columns", "Phase"),
    "Proposal": ("tokenlens.core.proposal", "Proposal"),
    "Rows": ("tokenlens.core.rows", "Rows"),
    "SignalRequest": ("tokenlens.core.proposal", "SignalRequest"),
    "Signals": ("tokenlens.core.proposal", "Signals"),
    "columns": ("tokenlens.core.columns", ""),
}

__all__ = ["METHODS", "Method", "active", "allow", "method"]


def __getattr__(name: str) -> Any:
    # Late, because the configs beside the steps are read without torch.
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _LATE[name]
    found = import_module(module)
    return getattr(found, attribute) if attribute else found
