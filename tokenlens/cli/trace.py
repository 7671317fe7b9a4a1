"""``tokenlens trace``: look at trace files.

A file with a fault is shown up to it, the fault is named, and the command ends with 1.
"""

import csv
import io
import json
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.table import Table
from rich.text import Text

from tokenlens.cli.base import complain, console, fail, printable, sentences
from tokenlens.cli.serve import serve_page
from tokenlens.trace import Recording, Summary, differences, read_summaries, read_what_is_there
from tokenlens.trace.compare import csv_rows
from tokenlens.trace.files import refuse_inputs, write_text

app = typer.Typer(no_args_is_help=True, help="Look at trace files.")

FileArgument = Annotated[Path, typer.Argument(help="a trace file, JSON Lines")]
SHOWN_DIFFERENCES = 20
UPRIGHT = 4
"""So many traces stand in columns, which a terminal has room for."""
BOXED = 200
"""So many traces stand in a table; more are written a line each."""


def load(file: Path) -> tuple[tuple[Recording, ...], bool]:
    """The traces of a file up to its first fault, and whether there was none."""
    recordings, fault = load_with_fault(file)
    return recordings, not fault


def load_with_fault(file: Path) -> tuple[tuple[Recording, ...], str]:
    """The traces of a file up to its first fault, and the fault, which is shown too."""
    with sentences():
        found = read_what_is_there(file)
    if found.error is not None:
        complain(found.error)
        if not found.recordings:
            raise typer.Exit(2)
    return found.recordings, "" if found.error is None else str(found.error)


def pick(recordings: tuple[Recording, ...], index: int) -> Recording:
    """One trace of a file."""
    if not 0 <= index < len(recordings):
        fail(ValueError(f"trace: got {index}; allowed: 0 to {len(recordings) - 1}"))
    return recordings[index]


@app.command()
def summary(file: FileArgument) -> None:
    """The figures of each trace."""
    with sentences():
        found, fault = read_summaries(file)
    if fault is not None:
        complain(fault)
        if not found:
            raise typer.Exit(2)
    names = ("trace", "engine", "prompt", *(name.replace("_", " ") for name in Summary._fields))
    rows = []
    for number, one in enumerate(found):
        cells = [f"{v:.3f}" if isinstance(v, float) else str(v) for v in one.figures]
        name = f"{number}" if one.complete else f"{number} (cut off)"
        rows.append((name, printable(one.engine), printable(one.prompt[:40]), *cells))
    if len(rows) > BOXED:
        with sentences():
            for row in (names, *rows):
                sys.stdout.write("\t".join(" ".join(cell.split()) for cell in row) + "\n")
        raise typer.Exit(0 if fault is None else 1)
    lines = list(zip(names, *rows)) if len(rows) <= UPRIGHT else [names, *rows]
    table = Table(*lines[0])
    for line in lines[1:]:
        table.add_row(*map(Text, line))
    console.print(table)
    raise typer.Exit(0 if fault is None else 1)


@app.command()
def diff(
    left: FileArgument,
    right: FileArgument,
    left_trace: Annotated[int, typer.Option(min=0, help="which trace of the first file")] = 0,
    right_trace: Annotated[int, typer.Option(min=0, help="which trace of the second file")] = 0,
    tolerance: Annotated[
        float, typer.Option(min=0, help="of entropies, probabilities and weights")
    ] = 1e-4,
) -> None:
    """Where two traces part; ends with 1 if they do."""
    (a, whole_a), (b, whole_b) = load(left), load(right)
    one, other = pick(a, left_trace), pick(b, right_trace)
    found = differences(one.trace, other.trace, tolerance)
    if one.trace.spec != other.trace.spec:
        console.print("the specs differ")
    if one.trace.counts != other.trace.counts:
        console.print("the counts differ")
    table = Table("position", "what differs", left.name, right.name)
    for item in found[:SHOWN_DIFFERENCES]:
        cells = [
            Text("–" if step is None else f"{shown.text(step.token)!r}  H {step.entropy:.3f}")
            for shown, step in ((one, item.left), (other, item.right))
        ]
        table.add_row(str(item.position), ", ".join(item.fields), *cells)
    steps = max(len(one.trace.steps), len(other.trace.steps))
    if found:
        console.print(table)
    console.print(f"{len(found)} of {steps} steps differ")
    same = not found and one.trace.counts == other.trace.counts
    raise typer.Exit(0 if same and whole_a and whole_b else 1)


@app.command()
def export(
    file: FileArgument,
    out: Annotated[Path, typer.Option("--out", "-o", help="the file to write; - = here")],
    trace: Annotated[int, typer.Option(min=0, help="which trace of the file")] = 0,
    form: Annotated[
        Literal["csv", "json"], typer.Option("--format", help="one row a step, or one object")
    ] = "csv",
) -> None:
    """Write one trace as a table, or as one JSON object."""
    to_here = str(out) == "-"
    if not to_here:
        with sentences():
            refuse_inputs(out, [file], "--out")
    recordings, whole = load(file)
    one = pick(recordings, trace)
    text = io.StringIO(newline="")
    if form == "csv":
        csv.writer(text).writerows(csv_rows(one))
    else:
        json.dump(one.model_dump(mode="json"), text, ensure_ascii=False, indent=1)
        text.write("\n")
    with sentences():
        if to_here:
            sys.stdout.write(text.getvalue())
            sys.stdout.flush()
        else:
            write_text(out, text.getvalue())
    raise typer.Exit(0 if whole else 1)


@app.command()
def view(
    file: FileArgument,
    other: Annotated[Path | None, typer.Argument(help="a second file, to compare")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="the page; default: FILE with .html")
    ] = None,
    serve: Annotated[
        int | None, typer.Option(min=0, max=65_535, help="serve it on this port; 0 = any")
    ] = None,
) -> None:
    """Write one HTML page that shows the traces, and perhaps serve it on this machine."""
    from tokenlens.trace.viewer import page

    with sentences():
        # A folder, "." for instance, may have no name that could be another one.
        target = out or file.parent / (file.stem + ".html")
        refuse_inputs(target, [one for one in (file, other) if one is not None], "--out")
    found = [load_with_fault(one) for one in (file, other) if one is not None]
    recordings = [one for records, _ in found for one in records]
    fault = " ".join(message for _, message in found if message)
    title = " and ".join(one.name for one in (file, other) if one is not None)
    text = page(recordings, title=title, fault=fault)
    with sentences():
        write_text(target, text)
    console.print(Text(f"{len(recordings)} traces in {target}", style="dim"))
    if serve is not None:
        with sentences():
            serve_page(text, serve)
    raise typer.Exit(1 if fault else 0)


@app.command()
def verify(
    file: FileArgument,
    model: Annotated[str, typer.Option(help="a folder, or the name of an embedded model")],
    trace: Annotated[
        int | None, typer.Option(min=0, help="which trace of the file; default: all")
    ] = None,
    prompt_ids: Annotated[
        str,
        typer.Option(
            help="the prompt's token ids, where the trace has none: 1,2,3, or a file of them"
        ),
    ] = "",
    tolerance: Annotated[
        float, typer.Option(min=0, help="nats of entropy, and probability")
    ] = 1e-4,
) -> None:
    """Whether what was fed is what the traces say: replayed through the model, in float32.

    Ends with 1 where it is not, or where nothing can tell.
    """
    recordings, whole = load(file)
    chosen = enumerate(recordings) if trace is None else [(trace, pick(recordings, trace))]
    with sentences():
        from tokenlens.cli.verify import HINT, Replays, row

        replays = Replays(model, prompt_ids, tolerance)
        table = Table(*row())
        holds = whole
        for number, one in chosen:
            found = replays.of(one)
            holds = holds and found.holds and found.tells
            table.add_row(*map(Text, row(number, printable(one.trace.engine), found)))
    console.print(table)
    if not holds:
        console.print(Text(HINT))
    raise typer.Exit(0 if holds else 1)


@app.command()
def tree(
    file: Annotated[Path, typer.Argument(help="answers with a route, or controllers' traces")],
    html: Annotated[Path | None, typer.Option(help="write a page instead")] = None,
) -> None:
    """What steered requests probed, forked, put in and threw away, and why they stopped."""
    with sentences():
        from tokenlens.cli.steered import read_trees
        from tokenlens.controllers.tree import lines
        from tokenlens.controllers.tree_page import page

        found = read_trees(file)
        if html is not None:
            refuse_inputs(html, [file], "--html")
            write_text(html, page(found))
            return
    for number, one in enumerate(found):
        policy = one.spec.get("policy") if isinstance(one.spec, dict) else None
        name = str(policy.get("policy")) if isinstance(policy, dict) else "a request"
        console.print(Text(printable(f"request {number}: {name}, stopped: {one.stopped}")))
        for line in lines(one):
            console.print(Text(printable(line)), soft_wrap=True)


@app.command()
def canonical(
    file: FileArgument,
    tokenizer: Annotated[str, typer.Option(help="a folder or a hub id")],
) -> None:
    """Whether the ids of each trace are what its own text is encoded to, and where they are not."""
    recordings, whole = load(file)
    with sentences():
        from tokenlens.cli.steered import uncanonical

        for number, one in enumerate(recordings):
            count, found = uncanonical(one, tokenizer)
            verdict = "canonical" if not found else f"{len(found)} stretches differ"
            console.print(Text(f"trace {number}: {count} tokens, {verdict}"))
            for stretch in found[:SHOWN_DIFFERENCES]:
                ids, own = list(stretch.ids), list(stretch.own)
                console.print(Text(f"  at {stretch.start}: {ids} for {own} ({stretch.kind})"))
    raise typer.Exit(0 if whole else 1)
