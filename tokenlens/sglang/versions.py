"""Which SGLang is there, and whether it is one that was tested. Imports its version only."""

import os
from importlib.metadata import PackageNotFoundError, version

TESTED = ("0.5.23",)
"""Releases that the tests run on. SGLang moves what is hooked from release to release."""

OVERRIDE = "TOKENLENS_ANY_SGLANG"
"""Set to 1 to go on with another version."""


def installed() -> str | None:
    """The version of the installed SGLang."""
    try:
        return version("sglang")
    except PackageNotFoundError:
        return None


def problem(found: str | None) -> str | None:
    """Why this version is refused, ``None`` if it is not."""
    if found is not None and found.split("+")[0] in TESTED:
        return None
    if os.environ.get(OVERRIDE) == "1":
        return None
    return (
        f"sglang: got version {found or 'unknown'}; allowed: {', '.join(TESTED)}, with which"
        f" tokenlens was tested. Install one of them, or set {OVERRIDE}=1 to go on at your own"
        " risk; a hook that is not found still ends the start."
    )
