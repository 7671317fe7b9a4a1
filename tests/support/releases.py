"""What is run on every release of an engine, and what only on the newest.

``tests/versions/run.py`` asks for the part: the conformance table, traces, rows without a spec and
the server, in minutes for each release.
"""

import os

ANY_RELEASE = os.environ.get("TOKENLENS_TESTS_ON_ANY_VERSION") == "1"


def of_every_release(work, names):
    """Jobs by name: these ones on any release, all on the one that CI runs."""
    return {name: work[name] for name in names} if ANY_RELEASE else work


class Lazily(dict):
    """Values by key, each made when it is asked for first."""

    def __init__(self, makers):
        super().__init__()
        self._makers = makers

    def __missing__(self, key):
        value = self[key] = self._makers[key]()
        return value
