"""What every subcommand uses: the console, how a spec is named, how a command fails."""

from pathlib import Path
from typing import NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from tokenlens.spec import DecodingSpec, load_spec, parse_spec

console = Console()
errors = Console(stderr=True)

SPEC_HELP = "a .yaml or .json file, the name of a preset, or a spec as JSON"


def read_spec(text: str) -> DecodingSpec:
    """A spec from a file, a preset's name, or JSON."""
    return load_spec(text) if Path(text).suffix in (".yaml", ".yml", ".json") else parse_spec(text)


def complain(error: Exception) -> None:
    """Show an error's text, without a traceback: it names what to change."""
    errors.print(f"[red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)


def fail(error: Exception) -> NoReturn:
    """End with the error's text."""
    complain(error)
    raise typer.Exit(2)
