"""Packages of methods from outside, made in a folder as an installer would leave them."""

import atexit
import os
import shutil
import sys
import tempfile
from contextlib import contextmanager
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "my_method"
NAMES = {
    "pulse_gate": "my_method.pulse_gate:PulseGateMethod",
    "no_echo": "my_method.no_echo:NoEchoMethod",
}
SPECS = {
    "pulse": [{"method": "pulse_gate", "latent": 2, "discrete": 1, "temperature": 1.0}],
    "pulse-echo": [{"method": "pulse_gate"}, {"method": "no_echo", "penalty": 5.0}],
    "echo": [{"method": "no_echo", "penalty": 8.0}],
    "soft": [{"method": "soft_thinking"}],
}
"""Specs that name the example's methods, and one that names none."""

PROMPT = [1, 3, 11, 12, 13, 14]
MARKERS = {"think_start": [3], "think_end": [7]}


def distribution(folder, name, entries, files=()):
    """What pip leaves of a package: its entry points, and its modules beside them."""
    info = Path(folder) / f"{name.replace('-', '_')}-0.1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1.0\n")
    lines = "".join(f"{key} = {value}\n" for key, value in entries)
    (info / "entry_points.txt").write_text(f"[tokenlens.methods]\n{lines}")
    for path, text in dict(files).items():
        target = Path(folder) / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    return str(folder)


def example(folder):
    """The example's package, on a path of its own; the folders to put on it."""
    return [distribution(folder, "my-method", NAMES.items()), str(EXAMPLE)]


def environment(*folders, **more):
    """This process's environment, with folders in front of its path."""
    path = [*map(str, folders), str(ROOT), str(ROOT / "kernels"), *sys.path[1:]]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path)), **more}


FAULTY = Path(__file__).parent / "faulty_method.py"


@cache
def installed():
    """Folders with the example's package and the faulty one, for the life of this process."""
    folder = Path(tempfile.mkdtemp(prefix="outside-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    entries = [("faulty", "faulty_method:FaultyMethod"), ("unmade", "faulty_method:UnmadeMethod")]
    faulty = distribution(folder / "faulty", "faulty", entries, {FAULTY.name: FAULTY.read_text()})
    return [*example(folder / "example"), faulty]


def allow_here(*names):
    """Let methods of these packages in, in this process: a reference needs them as engines do."""
    from tokenlens.methods import allow

    sys.path[:0] = [folder for folder in installed() if folder not in sys.path]
    return allow(names)


@contextmanager
def let_in(*methods):
    """The same for a while, with names or classes: other tests look at all methods that are."""
    from tokenlens.methods import allow, door
    from tokenlens.spec import registry

    before = set(door.outside())
    sys.path[:0] = [folder for folder in installed() if folder not in sys.path]
    try:
        yield allow(methods)
    finally:
        for name in set(door.outside()) - before:
            del door._LOADED[name]
            registry.forget(name)


def going_wrong(row, apart):
    """Runs of an engine: good requests alone, and one request for each fault beside them.

    Parameters
    ----------
    row
        A request of a name and methods; without methods, one without a spec.
    apart
        Steps between the good ones, so that there is one in every step in which one goes wrong.
    """
    import faulty_method

    others = [
        row("soft", {"method": "soft_thinking"}),
        row("pulse", {"method": "pulse_gate"}, {"method": "min_p", "min_p": 0.1}),
        row("ends", {"method": "answer_now", "after": 3}),
        row("plain"),
    ]
    rows = [row(fault, {"method": "faulty", "fault": fault}) for fault in faulty_method.FAULTS]
    beside = [
        {**one, "name": f"{one['name']}/{i}", "arrive": apart * i}
        for i in range(5)
        for one in others
    ]
    return [{"requests": others}, {"requests": [*rows, *beside]}]
