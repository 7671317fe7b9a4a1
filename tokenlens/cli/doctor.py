"""What is installed, and what works with it."""

import platform
import sys
from collections.abc import Iterable, Mapping, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tokenlens import __version__, capabilities, versions
from tokenlens.errors import MethodError
from tokenlens.methods import door
from tokenlens.sglang import doctor as sglang
from tokenlens.spec.installed import GROUP
from tokenlens.spec.installed import installed as installed_methods
from tokenlens.vllm import doctor as vllm

LABELS: dict[versions.Engine, str] = {**versions.NAMES, "hf": "Hugging Face transformers"}


def installed(names: Iterable[str]) -> str:
    """``name version`` of the first distribution that is installed, or that there is none."""
    found = versions.distribution(names)
    return "[dim]no[/]" if found is None else " ".join(found)


def run(console: Console, markdown: bool, allowed: Sequence[str]) -> bool:
    """Print the report; whether every method that is allowed can be let in.

    Parameters
    ----------
    allowed
        Names of methods from outside.
    """
    faults = let_in(allowed)
    if markdown:
        sys.stdout.write(capabilities.markdown() + "\n")
        return not faults
    found = Table("", "installed", "tested with", title=f"tokenlens {__version__}")
    found.add_row("Python", platform.python_version(), "3.11")
    found.add_row("torch", installed(["torch"]), versions.TORCH)
    found.add_row("triton", installed(["triton"]), "")
    for engine, label in LABELS.items():
        names = versions.DISTRIBUTIONS[engine]
        found.add_row(label, installed(names), tested_with(engine))
    found.add_row("accelerator", accelerator(), "")
    for name, fact in vllm.facts()[1:]:
        found.add_row(f"vLLM: {name}", fact, "")
    for name, fact in sglang.facts()[1:]:
        found.add_row(f"SGLang: {name}", fact, "")
    console.print(found)
    outside(console, allowed, faults)
    styles = {"yes": "green", "refused": "yellow", "planned": "dim", "n/a": "dim"}
    table = Table("", *capabilities.ENGINES.values(), "why", title="what works where")
    for row in capabilities.CAPABILITIES:
        cells = [getattr(row, engine) for engine in capabilities.ENGINES]
        table.add_row(row.name, *(f"[{styles[cell]}]{cell}[/]" for cell in cells), row.note)
    console.print(table)
    table = Table("", "from", *capabilities.ENGINES.values(), "why", title="methods, by default")
    for one in capabilities.methods():
        shown = [f"[{styles[cell]}]{cell}[/]" for cell in one.cells.values()]
        table.add_row(one.name, one.package, *shown, one.note)
    console.print(table)
    legend = "refused: raises an error that says why; planned: not there yet; n/a: no such thing"
    console.print(f"[dim]{legend}[/]")
    return not faults


def tested_with(engine: versions.Engine) -> str:
    """The tested releases, and the nearest of them if the installed one is none."""
    found, tested = versions.installed(engine), versions.supported(engine)
    if found is None or versions.is_tested(engine, found):
        return tested
    return f"{tested}; not with this one: the nearest is {versions.nearest(engine, found)}"


def let_in(allowed: Sequence[str]) -> dict[str, str]:
    """Let methods from outside in; by name, what is wrong with those that cannot be."""
    waiting, faults = list(dict.fromkeys(allowed)), dict.fromkeys(allowed, "")
    # One by one, so that a broken one hides no other; again, as one may stand behind another.
    while waiting:
        faults = {}
        for name in waiting:
            try:
                door.allow([name])
            except MethodError as error:
                faults[name] = str(error)
        if len(faults) == len(waiting):
            break
        waiting = list(faults)
    return faults


def outside(console: Console, allowed: Sequence[str], faults: Mapping[str, str]) -> None:
    """Print the methods from outside that are allowed or installed, and what is wrong with them."""
    table = Table("method from outside", "package", "", title=f"entry points of {GROUP}")
    for name in dict.fromkeys([*allowed, *sorted(installed_methods())]):
        fact = "allowed" if name in allowed else "not allowed, so nothing of it is imported"
        fact = f"broken: {faults[name]}" if name in faults else fact
        table.add_row(name, installed_methods().get(name, "no package has it"), escape(fact))
    if table.rows:
        console.print(table)


def accelerator() -> str:
    """The device that torch would use."""
    try:
        import torch
    except ImportError:
        return "torch is not installed"
    if torch.cuda.is_available():
        return torch.cuda.get_device_name(0)
    return f"none: {torch.get_num_threads()} threads of the CPU"


WAYS = {
    "engine": "the engine's reasoning parser",
    "response_template": "the tokenizer's response template",
    "chat_template": "the chat template, rendered",
    "vocabulary": "the added tokens of the vocabulary",
    "family": "the table of families",
}


def run_model(console: Console, model: str) -> bool:
    """Print a model's think markers and how they were found; whether there are any."""
    from transformers import AutoTokenizer

    from tokenlens.spec.finding import find_markers

    tokenizer = AutoTokenizer.from_pretrained(model)
    found = find_markers(tokenizer)
    if found is None:
        console.print(
            "no think markers: neither its templates nor its vocabulary nor its name say any.\n"
            "Nothing would open thinking. Name them as phase.think_start and phase.think_end, or"
            " say phase: none, which thinks from the first token."
        )
        return False
    table = Table("marker", "text", "tokens", title=f"think markers of {model}")
    for name, texts in (("start", found.starts), ("end", found.ends), ("tool", found.tools)):
        for text in texts:
            ids = tokenizer.encode(text, add_special_tokens=False)
            table.add_row(name, repr(text).replace("[", r"\["), str(len(ids)))
    console.print(table)
    console.print(f"found by: {WAYS[found.by]} ({found.by})")
    return True
