"""Commands that a guide gives, so that the servers of the tests are started with these."""

import shlex
import sys

from outside import ROOT

GUIDE = ROOT / "docs" / "guides" / "write_a_method.md"


def command_of(module, model):
    """The guide's command that runs a module, as arguments; ``M`` stands for a model's folder."""
    lines = GUIDE.read_text().replace("\\\n", " ").splitlines()
    (found,) = [line for line in lines if line.startswith(f"python -m {module} ")]
    words = shlex.split(found)
    return [sys.executable, *(str(model) if word == "M" else word for word in words[1:])]
