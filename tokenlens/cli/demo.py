"""``tokenlens demo``: the same model on the same problems, discrete and with concept tokens."""

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from tokenlens import assets
from tokenlens.cli import models, show
from tokenlens.evaluation.countdown import Problem, check_answer, prompt
from tokenlens.spec import DecodingSpec, preset
from tokenlens.trace import Trace

READS_MIXTURES = "tiny-reasoner-latent"
"""The embedded model that was trained to read mixtures."""

# From the development split.
PROBLEMS = (Problem((4, 11, 9), 6), Problem((12, 5, 8, 5), 14))
MAX_NEW_TOKENS = 320


def run(console: Console, model: str | None, details: bool) -> bool:
    """Solve both problems in both ways, show them, and say whether all were solved."""
    name = model or (READS_MIXTURES if READS_MIXTURES in assets.names() else assets.names()[0])
    with console.status(f"loading {name}"):
        network, tokenizer = models.load(name)
    console.rule(f"[bold]{name}[/]: combine all numbers with + - * to reach the target")
    texts = [prompt(problem) for problem in PROBLEMS]
    ways: dict[str, DecodingSpec] = {
        "discrete (greedy)": DecodingSpec(phase=preset("tiny-soft").phase),
        "concept tokens (Soft Thinking)": preset("tiny-soft"),
    }
    found: dict[str, list[Trace]] = {
        label: models.run(
            console, network, tokenizer, texts, spec, label=label, max_new_tokens=MAX_NEW_TOKENS
        )
        for label, spec in ways.items()
    }
    console.print(show.legend())
    solved = []
    for index, problem in enumerate(PROBLEMS):
        table = Table.grid(expand=True, padding=(0, 1))
        for _ in ways:
            table.add_column(ratio=1)
        panels = []
        for label, traces in found.items():
            trace = traces[index]
            answer = answer_of(trace, tokenizer)
            right = check_answer(problem, answer)
            solved.append(right)
            body = show.tokens(trace, tokenizer)
            verdict = Text(f"\n\n{'✓ solved' if right else '✗ not solved'}: {answer}")
            verdict.stylize("bold green" if right else "bold red")
            panels.append(Panel(body + verdict + Text("\n") + show.summary(trace), title=label))
        table.add_row(*panels)
        console.rule(f"[bold]{texts[index]}[/]", align="left")
        console.print(table)
        latent = found["concept tokens (Soft Thinking)"][index]
        console.print(show.concept_tokens(latent, tokenizer, details))
    console.rule()
    count = f"{sum(solved)} of {len(solved)} solved"
    console.print(f"[bold {'green' if all(solved) else 'red'}]{count}[/]")
    return all(solved)


def answer_of(trace: Trace, tokenizer: object) -> str:
    """The text after the end of thinking, without special tokens."""
    ids = [step.token for step in trace.steps if step.phase == "answer"]
    return str(tokenizer.decode(ids, skip_special_tokens=True)).strip()  # type: ignore[attr-defined]
