"""Scores answers in a process of its own: a line of JSON in, a line of JSON out.

Run as a program by :mod:`tokenlens.evaluation.scoring`, for a score that can be imported; called
after a fork for one that cannot.
"""

import importlib
import json
import os
import sys
from collections.abc import Callable
from typing import IO, Any

MEMORY = 4 << 30
"""Bytes that scoring may take beyond what the process has when it begins."""


def serve(asked: IO[bytes], answers: IO[bytes], judge: Callable[[Any], Any]) -> None:
    """Answer until nobody asks: ``[true, verdict]``, or ``[false, error's class, its text]``."""
    for line in asked:
        found: list[Any]
        try:
            found = [True, bool(judge(json.loads(line)))]
        except Exception as error:
            found = [False, type(error).__name__, str(error)]
        answers.write(json.dumps(found).encode() + b"\n")
        answers.flush()


class Imported:
    """Scores by the names of functions: ``[module, name]`` chooses one, then jobs come."""

    def __init__(self) -> None:
        self._score: Callable[..., bool] | None = None

    def __call__(self, given: Any) -> bool:
        """Take a function, or judge ``[id, prompt, answer, text]``."""
        from tokenlens.evaluation.answers import Answer
        from tokenlens.evaluation.question import Question

        if len(given) == 2:
            score = getattr(importlib.import_module(given[0]), given[1])
            getattr(score, "prepare", int)()
            _bound()
            self._score = score
            return True
        assert self._score is not None
        *question, text = given
        return self._score(Question(*question), Answer(text))


def _bound() -> None:
    """Bound the memory, where a system can."""
    try:
        import resource

        with open("/proc/self/statm") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
        most = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, most))
    except (ImportError, OSError, ValueError):
        # The one that asks bounds the time.
        return


def main() -> None:
    """Be the program."""
    answers = os.fdopen(os.dup(1), "wb")
    # What a score prints is no answer.
    os.dup2(2, 1)
    from tokenlens.evaluation import math_score

    math_score.HERE = True
    serve(sys.stdin.buffer, answers, Imported())


if __name__ == "__main__":
    main()
