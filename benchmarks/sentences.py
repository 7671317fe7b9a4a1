"""Imported first by every benchmark: a package that is missing is said in a sentence."""

import sys


def _say(kind, error, trace):
    if not issubclass(kind, ImportError):
        sys.__excepthook__(kind, error, trace)
        return
    sys.stderr.write(
        f"{sys.argv[0]}: got no {error.name or error}; allowed: an environment with the"
        " packages that this benchmark imports (make install makes .venv; make test-vllm and make test-sglang the"
        " engines' own)\n"
    )


sys.excepthook = _say
