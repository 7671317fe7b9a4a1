"""``tokenlens eval``: specs beside their controls, into a folder with a report."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from tokenlens.cli.base import SPEC_HELP, console, read_spec, sentences, spec_files
from tokenlens.cli.route import read_controller
from tokenlens.controllers.spec import ControllerSpec
from tokenlens.spec import DecodingSpec
from tokenlens.trace.files import refuse_inputs


def command(
    model: Annotated[str, typer.Option(help="a folder, a hub id, or an embedded model's name")],
    specs: Annotated[list[str], typer.Option(help=f"{SPEC_HELP}; several may follow")],
    more: Annotated[list[str] | None, typer.Argument(hidden=True)] = None,
    task: Annotated[
        str, typer.Option(help="countdown, countdown-dev, math500, aime, gsm8k, gpqa or mmlu_pro")
    ] = "countdown",
    data: Annotated[
        Path | None,
        typer.Option(help="the questions: JSON Lines, JSON, CSV or Parquet; not for Countdown"),
    ] = None,
    prompt: Annotated[
        str, typer.Option(help="what is asked, with {question} in it; not for Countdown")
    ] = "",
    engine: Annotated[str, typer.Option(help="hf, vllm, sglang or server")] = "hf",
    base_url: Annotated[
        list[str] | None,
        typer.Option(help="a server with tokenlens (vLLM or SGLang); several may follow"),
    ] = None,
    concurrency: Annotated[
        int, typer.Option(min=1, max=100_000, help="requests at a time, all servers together")
    ] = 32,
    api_key_env: Annotated[
        str, typer.Option(help="environment variable with the key; TOKENLENS_API_KEY if not named")
    ] = "",
    engine_args: Annotated[
        str, typer.Option(help="the engine's own arguments, as a JSON object")
    ] = "{}",
    out: Annotated[
        Path, typer.Option(help="result folder; one that was interrupted is gone on with")
    ] = Path("evaluation"),
    limit: Annotated[int | None, typer.Option(min=1, help="how many questions")] = None,
    samples: Annotated[int, typer.Option(min=1, max=10_000, help="answers a question")] = 1,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, max=1_000_000, help="answers at a time: 64, with servers 1024"),
    ] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1)] = None,
    temperature: Annotated[
        float, typer.Option(min=0, max=100, help="of what the engine samples; 0 = greedy")
    ] = 0.6,
    top_k: Annotated[int, typer.Option(min=0, help="0 = off")] = 0,
    top_p: Annotated[float, typer.Option(min=0.001, max=1)] = 0.95,
    budget_tokens: Annotated[
        int | None, typer.Option(min=1, help="stop before more are generated, all arms together")
    ] = None,
    until_ci: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            max=100,
            help="stop when every accuracy and difference is known to so many points to either"
            " side (95 %)",
        ),
    ] = None,
    controls: Annotated[
        bool, typer.Option(help="add greedy, sampling, no_thinking, top1, random_route")
    ] = True,
) -> None:
    """Measure specs on a task, beside the controls that they have to beat."""
    from tokenlens.evaluation import (
        ArmSampling,
        arms_of,
        evaluate,
        load_task,
        open_engine,
        report,
        rows,
    )

    with sentences():
        # What follows an option's first value arrives without the option's name.
        urls = [one for one in more or [] if one.startswith(("http://", "https://"))]
        specs = [*specs, *(one for one in more or [] if one not in urls)]
        settings = _settings(
            engine, _object(engine_args), [*(base_url or []), *urls], concurrency, api_key_env
        )
        inputs: list[str | Path] = [*spec_files(*specs), *([data] if data else [])]
        for path in (*report.files(out), out / "settings.json", *(out / "records").glob("*")):
            refuse_inputs(path, inputs, "--out")
        named = _named(specs)
        questions = load_task(task, data=data, limit=limit, seed=seed, prompt=prompt or None)
        sampling = ArmSampling(temperature=temperature, top_k=top_k, top_p=top_p)
        arms = arms_of(named, sampling, controls)
        with console.status("loading the model"):
            running = open_engine(engine, model, **settings)
        total = len(arms) * len(questions.questions) * samples
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as progress:
            bar = progress.add_task("evaluating", total=total)
            done: dict[str, int] = {}

            def advance(arm: str, answered: int, _: int) -> None:
                done[arm] = answered
                progress.update(bar, completed=sum(done.values()), description=arm)

            try:
                results = evaluate(
                    running,
                    questions,
                    arms,
                    out,
                    model=model,
                    samples=samples,
                    seed=seed,
                    batch_size=batch_size or (1024 if engine == "server" else 64),
                    max_new_tokens=max_new_tokens,
                    budget_tokens=budget_tokens,
                    until_ci=until_ci,
                    progress=advance,
                )
            finally:
                running.close()
        written = report.write(results, out)
    if results.stopped:
        console.print(Text(f"stopped: {results.stopped}"))
    for cells in (
        report.arm_table(rows(results)),
        report.comparison_table(results),
        report.cost_table(results),
    ):
        if len(cells) > 1:
            table = Table(*cells[0])
            for row in cells[1:]:
                table.add_row(*map(Text, row))
            console.print(table)
    console.print(Text(f"written: {', '.join(map(str, written))}", style="dim"))


def progress(
    folder: Annotated[Path, typer.Argument(help="the --out folder of an evaluation")],
) -> None:
    """How far an evaluation is, also while it runs: answers, tokens a second, time to go."""
    from tokenlens.evaluation.progress import read

    with sentences():
        console.print_json(json.dumps(read(folder)))


def _settings(
    engine: str, given: dict[str, Any], urls: list[str], concurrency: int, api_key_env: str
) -> dict[str, Any]:
    """The engine's arguments."""
    if engine != "server":
        if urls or api_key_env:
            name = "base-url" if urls else "api-key-env"
            raise ValueError(f"{name}: got a value for engine {engine}; allowed: --engine server")
        return given
    if not urls:
        raise ValueError("base-url: got none; allowed: at least one address, http://HOST:PORT")
    options = {"base_url": urls, "concurrency": concurrency, "api_key_env": api_key_env or None}
    return {**given, **options}


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"engine-args: got {text!r}; allowed: a JSON object")
    return found


def _named(texts: list[str]) -> dict[str, DecodingSpec | ControllerSpec]:
    """Specs, and those of controllers, by the names of their files or presets."""
    found: dict[str, DecodingSpec | ControllerSpec] = {}
    for number, text in enumerate(texts, 1):
        path = Path(text)
        is_json = text.lstrip().startswith("{")
        name = f"spec {number}" if is_json else path.stem if path.suffix else text
        if name in found:
            raise ValueError(f"specs: got {name!r} twice; allowed: each name once, rename a file")
        found[name] = read_controller(text) or read_spec(text)
    return found
