"""The report of an evaluation, in Markdown and as one HTML page with its plots inside."""

import html
import json
from collections.abc import Sequence
from pathlib import Path

from tokenlens.evaluation import plots
from tokenlens.evaluation.cost import curve
from tokenlens.evaluation.results import Row, comparisons, rows
from tokenlens.evaluation.run import Results
from tokenlens.evaluation.statistics import Comparison, Estimate
from tokenlens.trace.files import write_text
from tokenlens.trace.plots import svg

Cells = list[list[str]]

METHOD = (
    "Intervals are of 95 %, over questions: Wilson where each question has one answer, else a"
    " bootstrap. Differences are paired by question; p is of a sign-flip test (McNemar's exact test"
    " for single answers), p (Holm) allows for all comparisons in the table. An answer that did not"
    " end by itself counts as wrong, and so does one whose thinking never ended. Never opened: a"
    " method that acts in thinking met none; cut: a budget or Cold Stop ended it. Wall time is of"
    " whole batches on this machine, shared or not."
)

STEERED = (
    "Tokens of a controller's answers are all that the model wrote, thrown away ones included; the"
    " vote beside one has as many lines as these pay for."
)

COST = (
    "At equal cost each arm has the limit on an answer's tokens with which it spends the same on"
    " average, the smaller of the two means; an answer that is longer is wrong there. The area is"
    " the mean accuracy over all costs up to that one. Intervals and p are of a bootstrap over"
    " questions that makes both curves anew. Not valid for specs that know their limit."
)

STOPPED = (
    "The run ended by the tokens that it had used, or when its figures were exact enough, whatever"
    " they were, and not when one was significant: intervals and p hold as in a whole run, up to"
    " the error of large samples. The interval of each figure holds by itself, not all at once."
)

STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #8884; }
th:first-child, td:first-child, td.text { text-align: left; }
svg { max-width: 100%; height: auto; background: #fff; border-radius: 6px; }
pre { overflow: auto; background: #8881; padding: 1rem; border-radius: 6px; }
.scroll { overflow-x: auto; }
"""


def write(results: Results, folder: Path) -> tuple[Path, Path]:
    """Write ``report.md`` and ``report.html``; returns their paths."""
    as_markdown, as_html = files(folder)
    write_text(as_markdown, markdown(results))
    write_text(as_html, page(results))
    return as_markdown, as_html


def files(folder: Path) -> tuple[Path, Path]:
    """Where :func:`write` writes."""
    return folder / "report.md", folder / "report.html"


def markdown(results: Results) -> str:
    """The report as Markdown."""
    parts = [f"# {_title(results)}", _about(results), _markdown_table(arm_table(rows(results)))]
    against = comparison_table(results)
    if len(against) > 1:
        parts += ["## Specs beside their controls", _markdown_table(against)]
        parts += ["## At equal token cost", _markdown_table(cost_table(results)), COST]
    return "\n\n".join([*parts, _method(results)]) + "\n"


def page(results: Results) -> str:
    """The report as one HTML page that needs nothing else."""
    found = rows(results)
    body = [f"<h1>{html.escape(_title(results))}</h1>", f"<p>{html.escape(_about(results))}</p>"]
    body.append(_html_table(arm_table(found)))
    against = comparison_table(results)
    if len(against) > 1:
        body += ["<h2>Specs beside their controls</h2>", _html_table(against)]
        body += ["<h2>At equal token cost</h2>", _html_table(cost_table(results))]
        body.append(f"<p>{html.escape(COST)}</p>")
    body.append(f"<p>{html.escape(_method(results))}</p>")
    try:
        curves = {arm.name: curve(results.records(arm.name)) for arm in results.arms}
        drawn = [
            svg(plots.against_tokens(found, curves)),
            svg(plots.against_latent_share(found)),
        ]
    except ImportError as error:
        drawn = [f"<p>{html.escape(str(error))}</p>"]
    body += ["<h2>Accuracy against what it costs</h2>", *drawn, "<h2>Settings</h2>"]
    settings = json.dumps(results.settings, indent=1, ensure_ascii=False)
    body.append(f"<details><summary>specs, versions</summary><pre>{html.escape(settings)}</pre>")
    body.append("</details>")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{html.escape(_title(results))}</title><style>{STYLE}</style></head>\n<body>"
        + "\n".join(body)
        + "</body></html>\n"
    )


def arm_table(found: Sequence[Row]) -> Cells:
    """A header, and a row an arm: per cent, tokens, seconds."""
    ks = [k for k in found[0].pass_at if k > 1] if found else []
    table = [
        [
            *("decoding", "accuracy %", *(f"pass@{k} %" for k in ks), "tokens", "thinking"),
            *("latent steps %", "unfinished %"),
            *("never opened %", "never ended %", "cut %", "wall s"),
        ]
    ]
    for row in found:
        name = f"control: {row.arm}" if row.is_control else row.arm
        table.append(
            [
                name,
                _percent(row.accuracy),
                *(f"{100 * row.pass_at[k]:.1f}" for k in ks),
                f"{row.tokens.mean:.0f} [{row.tokens.low:.0f}, {row.tokens.high:.0f}]",
                f"{row.thinking_tokens:.0f}",
                f"{100 * row.latent_share:.0f}",
                f"{100 * row.unfinished:.1f}",
                *(f"{100 * one:.1f}" for one in (row.never_opened, row.never_ended, row.cut)),
                f"{row.seconds:.0f}",
            ]
        )
    return table


def comparison_table(results: Results) -> Cells:
    """A header, and a row for each spec and control: differences in points and tokens."""
    table = [["spec", "beside", "accuracy, points", "p", "p (Holm)", "tokens"]]
    for one in comparisons(results):
        table.append(
            [
                one.arm,
                one.control,
                _signed(one.accuracy, 100, 1),
                f"{one.accuracy.p:.2g}",
                f"{one.p_holm:.2g}",
                _signed(one.tokens, 1, 0),
            ]
        )
    return table


def cost_table(results: Results) -> Cells:
    """A header, and a row for each spec and control: differences in points at equal token cost."""
    table = [["spec", "beside", "tokens an answer", "accuracy, points", "p", "area, points", "p"]]
    for one in comparisons(results):
        cost, accuracy, area = one.at_cost
        table.append(
            [
                *(one.arm, one.control, f"{cost:.0f}"),
                *(_signed(accuracy, 100, 1), f"{accuracy.p:.2g}"),
                *(_signed(area, 100, 1), f"{area.p:.2g}"),
            ]
        )
    return table


def _method(results: Results) -> str:
    """How the figures were made."""
    steered = any(arm.steer is not None for arm in results.arms)
    said = [METHOD, *([STEERED] if steered else []), *([STOPPED] if results.stopped else [])]
    return " ".join(said)


def _title(results: Results) -> str:
    settings = results.settings
    return f"{settings['task']}: {settings['model'] or 'a model'} on {settings['engine']}"


def _about(results: Results) -> str:
    s = results.settings
    versions = ", ".join(f"{name} {version}" for name, version in s["versions"].items())
    stopped = ""
    if results.stopped:
        answered = len(results.records(results.arms[0].name)) // s["samples"]
        stopped = f" Stopped after {answered} of them: {results.stopped}."
    return (
        f"{s['questions']} questions, {s['samples']} answers to each, seed {s['seed']}, at most"
        f" {s['max_new_tokens']} new tokens, batches of {s['batch_size']}.{stopped} {versions}."
    )


def _percent(estimate: Estimate) -> str:
    low, high = 100 * estimate.low, 100 * estimate.high
    return f"{100 * estimate.mean:.1f} [{low:.1f}, {high:.1f}]"


def _signed(one: Comparison, scale: float, digits: int) -> str:
    mean, low, high = (f"{scale * value:+.{digits}f}" for value in one[:3])
    return f"{mean} [{low}, {high}]"


def _markdown_table(cells: Cells) -> str:
    head, *body = [[cell.replace("|", "\\|") for cell in row] for row in cells]
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(row) + " |" for row in lines)


def _html_table(cells: Cells) -> str:
    head, *body = [[html.escape(cell) for cell in row] for row in cells]
    rows_ = ["".join(f"<td>{cell}</td>" for cell in row) for row in body]
    return (
        '<div class="scroll"><table><tr>'
        + "".join(f"<th>{cell}</th>" for cell in head)
        + "</tr>"
        + "".join(f"<tr>{row}</tr>" for row in rows_)
        + "</table></div>"
    )
