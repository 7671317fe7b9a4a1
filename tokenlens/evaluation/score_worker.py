"""Scores answers in a process of its own: frames in, frames out, until nobody asks.

Run as a program by :mod:`tokenlens.evaluation.scoring`, for a score that can be imported; called
after a fork for one that cannot. A frame is the length of a pickle in eight bytes, and the pickle;
both ends are ours.
"""

import os
import pickle
import sys
from collections.abc import Callable
from typing import IO, Any

MEMORY = 4 << 30
"""Bytes that scoring may take beyond what the process has when it begins."""


def send(file: IO[bytes], value: Any) -> None:
    """Write one frame."""
    data = pickle.dumps(value)
    file.write(len(data).to_bytes(8, "big") + data)
    file.flush()


def receive(file: IO[bytes]) -> Any:
    """Read one frame.

    Raises
    ------
    EOFError
        The other end is gone.
    """
    head = file.read(8)
    data = file.read(int.from_bytes(head, "big")) if len(head) == 8 else b""
    if len(head) < 8 or len(data) < int.from_bytes(head, "big"):
        raise EOFError
    return pickle.loads(data)


def serve(asked: IO[bytes], answers: IO[bytes], score: Callable[..., Any] | None = None) -> None:
    """Answer until the other end is gone: ``(True, verdict)`` or ``(False, an exception)``."""
    while True:
        try:
            given = receive(asked)
        except EOFError:
            return
        try:
            if isinstance(given, bytes):
                score = pickle.loads(given)
                getattr(score, "prepare", int)()
                _bound()
                found: tuple[bool, Any] = True, True
            else:
                assert score is not None
                found = True, bool(score(*given))
        except Exception as error:
            found = False, _sent(error)
        send(answers, found)


def _sent(error: Exception) -> Exception:
    """An exception that can travel."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _bound() -> None:
    """Bound the memory, where a system can."""
    try:
        import resource

        with open("/proc/self/statm") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(
            resource.RLIMIT_AS, (now + MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1])
        )
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
    serve(sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
