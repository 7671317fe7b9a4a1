"""The subcommands and their arguments; torch and transformers are imported when one needs them."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
import yaml
from rich.markup import escape
from rich.table import Table

from tokenlens import __version__
from tokenlens.cli import evaluate
from tokenlens.cli import trace as trace_commands
from tokenlens.cli.base import SPEC_HELP, console, read_spec, sentences, spec_files
from tokenlens.routing.settings import Role
from tokenlens.spec import FAMILIES, RECIPES, DecodingSpec, preset
from tokenlens.trace.files import refuse_inputs

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Decoding methods for reasoning models, inside the engines that people already run.",
    pretty_exceptions_show_locals=False,
)
app.add_typer(trace_commands.app, name="trace")
app.command("eval")(evaluate.command)
app.command("progress")(evaluate.progress)


@app.callback()
def outside(
    context: typer.Context,
    methods: Annotated[
        str,
        typer.Option(
            envvar="TOKENLENS_METHODS",
            help="methods from outside that specs may name: entry points, commas between several",
        ),
    ] = "",
) -> None:
    """Let in what was asked for, before any spec is read."""
    from tokenlens.methods.door import allow

    names = [name.strip() for name in methods.split(",") if name.strip()]
    if context.invoked_subcommand == "doctor":
        context.obj = names  # it says what is wrong with each
        return
    with sentences():
        allow(names)


@app.command()
def demo(
    model: Annotated[str, typer.Option(help="a model that reads mixtures")] = "",
    details: Annotated[
        bool, typer.Option(help="every latent step, also those of one entry")
    ] = False,
) -> None:
    """Two problems solved on the tiny reasoner: discrete, and with concept tokens."""
    from tokenlens.cli.demo import run

    if not run(console, model or None, details):
        raise typer.Exit(1)


@app.command()
def generate(
    model: Annotated[str, typer.Option(help="a folder, a hub id, or an embedded model's name")],
    spec: Annotated[str, typer.Option(help=SPEC_HELP)],
    prompt: Annotated[list[str], typer.Option(help="the user's message; may be given repeatedly")],
    max_new_tokens: Annotated[int, typer.Option(min=1, max=1_000_000)] = 512,
    temperature: Annotated[
        float, typer.Option(min=0, max=100, help="of discrete tokens; 0 = greedy")
    ] = 0.0,
    raw: Annotated[bool, typer.Option(help="the prompt as it is, without a chat template")] = False,
    trace: Annotated[
        Path | None, typer.Option(help="stream traces to this JSON Lines file")
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, help="of discrete sampling; the spec has its own")
    ] = 0,
) -> None:
    """Generate with a spec on Hugging Face, and show what happened."""
    from tokenlens.cli.generate import run

    with sentences():
        if trace is not None:
            refuse_inputs(trace, spec_files(spec), "--trace")
        run(
            console,
            model=model,
            spec=read_spec(spec),
            prompts=prompt,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            raw=raw,
            trace=trace,
            seed=seed,
        )


@app.command()
def route(
    small: Annotated[str, typer.Option(help="address of the small model's server")] = "",
    large: Annotated[
        str, typer.Option(help="address of the large model's server, or of the only one")
    ] = "",
    policy: Annotated[
        str,
        typer.Option(
            help="a policy or a controller: its name, or a spec: JSON, or a .yaml or .json file"
        ),
    ] = "glimprouter",
    threshold: Annotated[
        str, typer.Option(help="of the policy: a number, inf or -inf; nats for glimprouter")
    ] = "",
    host: Annotated[str, typer.Option()] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535)] = 8000,
    small_model: Annotated[str, typer.Option(help="served name; asked for if not given")] = "",
    large_model: Annotated[str, typer.Option(help="served name; asked for if not given")] = "",
    small_tokenizer: Annotated[str, typer.Option(help="a folder or a hub id")] = "",
    large_tokenizer: Annotated[str, typer.Option(help="a folder or a hub id")] = "",
    small_api: Annotated[str, typer.Option(help="auto, vllm, sglang or text")] = "auto",
    large_api: Annotated[str, typer.Option(help="auto, vllm, sglang or text")] = "auto",
    setting: Annotated[
        list[str] | None,
        typer.Option(help="NAME=VALUE of timeouts, retries, breaker or queue; may be repeated"),
    ] = None,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            help="clients need one of these; may be repeated. Others see a command line: better"
            " a file, or TOKENLENS_ROUTE_API_KEY (commas between several)"
        ),
    ] = None,
    api_key_file: Annotated[str, typer.Option(help="a file with a client's key in each line")] = "",
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(help="a name that clients may use for this machine; may be repeated; * = any"),
    ] = None,
    cors_origin: Annotated[
        list[str] | None, typer.Option(help="a page's origin that may ask; may be repeated")
    ] = None,
    ca_file: Annotated[
        str, typer.Option(help="certificates (PEM) that the models' servers may be signed by")
    ] = "",
) -> None:
    """Serve two models as one, OpenAI-compatible: step by step, the small or the large writes."""
    from tokenlens.cli.route import Access, run

    sides: dict[Role, tuple[str, str, str, str]] = {
        "small": (small, small_model, small_tokenizer, small_api),
        "large": (large, large_model, large_tokenizer, large_api),
    }
    access = Access(api_key or [], api_key_file, allowed_host or [], cors_origin or [], ca_file)
    with sentences():
        run(console, sides, policy, threshold, host, port, setting or [], access)


@app.command()
def schema() -> None:
    """The JSON Schema of a spec."""
    sys.stdout.write(json.dumps(DecodingSpec.model_json_schema(), indent=2) + "\n")


@app.command()
def presets(name: Annotated[str, typer.Argument(help="print this preset as YAML")] = "") -> None:
    """List the presets, or print one as a YAML file to start from."""
    if name:
        with sentences():
            data = preset(name).model_dump(mode="json")
        sys.stdout.write(yaml.safe_dump(data, sort_keys=False, allow_unicode=True))
        return
    families = Table("family", "models", "think markers", title="FAMILY-RECIPE, e.g. qwen3-soft")
    for key, family in FAMILIES.items():
        families.add_row(key, family.models, escape(f"{family.think_start} … {family.think_end}"))
    recipes = Table("recipe", "what it is")
    for key, recipe in RECIPES.items():
        recipes.add_row(key, recipe.description)
    console.print(families, recipes)


@app.command()
def validate(file: Annotated[str, typer.Argument(help=SPEC_HELP)]) -> None:
    """Check a spec, and print it with every default filled in."""
    with sentences():
        spec = read_spec(file)
    console.print_json(spec.model_dump_json())


@app.command("plot-schedule")
def plot_schedule(
    spec: Annotated[str, typer.Argument(help=SPEC_HELP)],
    tokens: Annotated[
        int | None, typer.Option(min=1, max=10_000_000, help="positions; chosen if not given")
    ] = None,
    out: Annotated[Path, typer.Option(help="the picture, PNG")] = Path("schedule.png"),
) -> None:
    """Draw the schedules of a spec: waveforms, penalties, ramps."""
    from tokenlens.cli import plot_schedule as plot

    with sentences():
        refuse_inputs(out, spec_files(spec), "--out")
        try:
            plot.run(console, read_spec(spec), tokens, out)
        except ModuleNotFoundError:
            raise ImportError("plot-schedule needs matplotlib: install the extra `plot`") from None


@app.command()
def doctor(
    context: typer.Context,
    markdown: Annotated[bool, typer.Option(help="only the table of what works where")] = False,
    model: Annotated[
        str, typer.Option(help="only this model's think markers: a folder or a hub id")
    ] = "",
) -> None:
    """Versions, engines found, and what works where; or a model's think markers."""
    from tokenlens.cli import doctor as report

    if model:
        with sentences():
            if not report.run_model(console, model):
                raise typer.Exit(1)
        return
    if not report.run(console, markdown, context.obj):
        raise typer.Exit(1)


@app.command()
def version() -> None:
    """The version."""
    sys.stdout.write(__version__ + "\n")
