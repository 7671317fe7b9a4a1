"""Files as a command line needs them: what is read ends, what is written is whole or not there.

Knows nothing of what is in them.
"""

import os
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)


def open_regular(path: str | Path) -> BinaryIO:
    """Open a regular file for reading: one that neither makes the reader wait nor has no end.

    Raises
    ------
    OSError
        It cannot be opened, or is a folder, a pipe, a socket or a device; links are followed first.
    """
    # Opening a pipe that nobody writes to would wait; of a regular file the flag changes nothing.
    number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    mode = os.fstat(number).st_mode
    if not stat.S_ISREG(mode):
        os.close(number)
        kind = next((name for is_kind, name in KINDS if is_kind(mode)), "no file")
        raise OSError(f"{path}: got {kind}; allowed: a regular file. Write it into one first")
    return os.fdopen(number, "rb")


def is_same(one: str | Path, other: str | Path) -> bool:
    """Whether two paths are of one file: by links of either kind, or another spelling."""
    try:
        return os.path.samefile(one, other)
    except (OSError, ValueError):
        return os.path.realpath(one) == os.path.realpath(other)


def refuse_inputs(out: str | Path, inputs: Iterable[str | Path], option: str) -> None:
    """Say no to an output that is one of the inputs.

    Raises
    ------
    ValueError
        It is; names both and the option that chooses another.
    """
    for one in inputs:
        if is_same(out, one):
            raise ValueError(
                f"{option}: got {out}, which is the input {one}; allowed: another file, as this one"
                " would be overwritten"
            )


@contextmanager
def replacing(path: str | Path) -> Iterator[BinaryIO]:
    """Write a file that is there as a whole, or, after any failure, as it was before.

    The bytes go into a file beside it, which takes its place at the end. A device or a pipe is
    written to as it is. A link stays one: what it leads to is replaced.

    Raises
    ------
    OSError
        The folder is missing, the disk is full, and so on.
    """
    target = Path(os.path.realpath(path))
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        mode = None
    if mode is not None and not stat.S_ISREG(mode):
        # A folder fails here, with its name.
        with open(path, "wb") as stream:
            yield stream
        return
    if mode is not None and not os.access(target, os.W_OK):
        raise PermissionError(f"{path}: this file may not be written")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {target.parent}; make it first")
    number, partial = tempfile.mkstemp(prefix=".tokenlens-", suffix=".part", dir=target.parent)
    try:
        with os.fdopen(number, "wb") as file:
            os.chmod(partial, _mode(mode))
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, target)
    except BaseException:
        with suppress(OSError):
            os.unlink(partial)
        raise


def write_text(path: str | Path, text: str) -> None:
    """Write a text in UTF-8 with :func:`replacing`; what is no Unicode text is escaped."""
    with replacing(path) as file:
        file.write(text.encode("utf-8", "backslashreplace"))


def _mode(there: int | None) -> int:
    """Permissions of the file that is there, or those that a new one would get."""
    if there is not None:
        return stat.S_IMODE(there)
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask
