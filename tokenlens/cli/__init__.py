"""The ``tokenlens`` command."""

import os
import sys
from typing import NoReturn

from tokenlens.cli.app import app
from tokenlens.cli.base import BROKEN_PIPE, complain


def main() -> NoReturn:
    """Run the command line. Ends with 2 after an error, 130 after Ctrl-C, 141 without a reader."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a character must not end the command.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    code: object = 0
    told = ""
    try:
        app()
    except SystemExit as ended:
        code = ended.code
    except KeyboardInterrupt:
        code = 130
    except OSError as error:
        complain(error)
        code, told = 2, str(error)
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        code = BROKEN_PIPE if isinstance(error, BrokenPipeError) else 2
        if code == 2 and str(error) != told:
            complain(error)
        # What is left cannot be written; the interpreter must not try again on its way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.exit(code)  # type: ignore[arg-type]


__all__ = ["app", "main"]
