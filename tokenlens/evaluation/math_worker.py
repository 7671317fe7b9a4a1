"""Says whether mathematical answers are equal: a line of JSON in, a line of JSON out.

A program of its own, run by :mod:`tokenlens.evaluation.math_score`: math-verify keeps its time with
a signal, which works in a main thread only, and what it calls may take hours and all memory.
"""

import json
import os
import sys


def verdict(gold: str, given: str) -> bool:
    """Whether two answers are equal; not where one cannot be read."""
    from math_verify import parse, verify

    try:
        return bool(verify(parse(gold), parse(given)))
    except Exception as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return False


def main() -> None:
    """Answer until nobody asks."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    # What libraries print is no answer.
    os.dup2(2, 1)
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
    except (ImportError, OSError, ValueError):
        # Not every system bounds a process; the one that asks bounds the time.
        pass
    for line in sys.stdin:
        answers.write(json.dumps(verdict(*json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
