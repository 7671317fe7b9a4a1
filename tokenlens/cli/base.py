"""What every subcommand uses: the console, how a spec is named, how a command fails."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from tokenlens.errors import TokenlensError
from tokenlens.spec import DecodingSpec, load_spec, parse_spec

BROKEN_PIPE = 141
"""Exit code where nobody reads any more (``| head``): what shells report after a SIGPIPE."""


class _Output(Console):
    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(BROKEN_PIPE)


console = _Output()
errors = Console(stderr=True)

SPEC_HELP = "a .yaml or .json file, the name of a preset, or a spec as JSON"
SPEC_FILES = (".yaml", ".yml", ".json")


def read_spec(text: str) -> DecodingSpec:
    """A spec from a file, a preset's name, or JSON."""
    return load_spec(text) if spec_files(text) else parse_spec(text)


def spec_files(*texts: str) -> list[str]:
    """Those of the specs that are files."""
    return [text for text in texts if Path(text).suffix in SPEC_FILES]


def complain(error: BaseException) -> None:
    """Show an error's text, without a traceback: it names what to change."""
    text = str(error) or type(error).__name__
    errors.print(f"[red]error:[/] {escape(printable(text))}", highlight=False, soft_wrap=True)


def fail(error: BaseException) -> NoReturn:
    """End with the error's text."""
    complain(error)
    raise typer.Exit(2)


@contextmanager
def sentences() -> Iterator[None]:
    """Let what is wrong with arguments, files and packages end the command with a sentence."""
    try:
        yield
    except BrokenPipeError:
        raise SystemExit(BROKEN_PIPE) from None
    except (TokenlensError, ValueError, OSError, ImportError, NotImplementedError) as error:
        fail(error)


def printable(text: str) -> str:
    """A text without what a terminal would obey: files and errors hold what others wrote."""
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)
