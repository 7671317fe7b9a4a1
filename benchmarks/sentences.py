"""Imported first by every benchmark: a package that is missing is said in a sentence."""

import sys


def _say(kind, error, trace):
    if not issubclass(kind, ImportError):
        sys.__excepthook__(kind, error, trace)
        return
    wanted = "an environment with this benchmark's packages: make install makes .venv"
    sys.stderr.write(f"{sys.argv[0]}: got no {error.name or error}; allowed: {wanted}\n")


sys.excepthook = _say
