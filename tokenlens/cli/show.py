"""Traces as coloured text: tokens shaded by entropy, and the entries of concept tokens as bars."""

from collections.abc import Iterable
from typing import Any

from rich.console import Group, RenderableType
from rich.style import Style
from rich.table import Table
from rich.text import Text

from tokenlens.trace import Trace, TraceStep
from tokenlens.trace.finish import finish
from tokenlens.trace.texts import step_texts, token_text

FULL_SHADE = 1.5
"""Nats at which the shading is at its strongest."""
BAR_WIDTH = 12
SHOWN_ENTRIES = 4
SHOWN_STEPS = 12
ONE_ENTRY = 0.99
"""A concept token whose top weight is above this is as good as a token."""


def shade(step: TraceStep) -> Style:
    """Background by entropy, from none over amber to red; latent tokens are underlined."""
    strength = min(step.entropy / FULL_SHADE, 1.0)
    background = None
    if strength > 0.02:
        background = f"rgb({int(90 + 165 * strength)},{int(90 - 50 * strength)},30)"
    return Style(bgcolor=background, underline=step.latent, bold=step.forced and not step.latent)


def legend() -> Text:
    """What the colours mean."""
    text = Text("entropy: ", style="dim")
    for entropy in (0.0, 0.3, 0.7, 1.1, 1.5):
        step = TraceStep(
            position=0, phase="thinking", token=0, latent=False, forced=False, valid=True,
            entropy=entropy, max_probability=0.0, entries=(),
        )  # fmt: skip
        text.append(f" {entropy:.1f} ", style=shade(step))
    text.append(" nats   ")
    text.append("underlined", style="underline")
    text.append(": fed as a mixture   ", style="dim")
    text.append("bold", style="bold")
    text.append(": forced", style="dim")
    return text


def tokens(trace: Trace, tokenizer: Any, phase: str | None = None) -> Text:
    """The visible tokens, shaded; blank lines inside steps are folded into ``⏎``."""
    text = Text()
    pieces = step_texts([step.token for step in trace.steps], tokenizer)
    for step, piece in zip(trace.steps, pieces):
        if phase is None or step.phase == phase:
            text.append(piece.replace("\n\n", "⏎ ").replace("\n", "⏎ "), style=shade(step))
    return text


def concept_tokens(trace: Trace, tokenizer: Any, details: bool) -> RenderableType:
    """A table of the latent steps: the visible token, the entropy, and the entries as bars."""
    latent = [step for step in trace.steps if step.latent]
    mixed = [step for step in latent if details or step.entries[0][1] < ONE_ENTRY]
    shown = mixed if details else mixed[:SHOWN_STEPS]
    table = Table(
        "pos", "token", "H", "concept token", box=None, padding=(0, 1), header_style="dim"
    )
    for step in shown:
        table.add_row(
            str(step.position),
            _visible(tokenizer, step.token),
            f"{step.entropy:.2f}",
            bars(tokenizer, step.entries),
        )
    note = Text(style="dim")
    if len(mixed) > len(shown):
        note.append(f"… and {len(mixed) - len(shown)} more (all of them: --details)\n")
    if len(latent) > len(mixed):
        note.append(f"… and {len(latent) - len(mixed)} whose top weight is at least {ONE_ENTRY}")
    return Group(table, note)


def bars(tokenizer: Any, entries: Iterable[tuple[int, float]]) -> Text:
    """Concept entries, largest first, each with a bar as long as its weight."""
    text = Text(no_wrap=True, overflow="ellipsis")
    for index, (token, weight) in enumerate(list(entries)[:SHOWN_ENTRIES]):
        length = max(1, round(weight * BAR_WIDTH))
        text.append("█" * length, style=("cyan", "magenta", "yellow", "green")[index])
        text.append(f" {_visible(tokenizer, token)} {weight:.2f}  ")
    return text


def summary(trace: Trace) -> Text:
    """Counts of one trace on one line."""
    counts = trace.counts
    parts = [f"{counts.tokens} tokens", f"{counts.thinking_tokens} thinking"]
    parts.append(f"{counts.latent_steps} latent")
    if counts.forced_steps:
        parts.append(f"{counts.forced_steps} decided by tokenlens")
    if counts.cold_stops:
        parts.append(f"Cold Stop x{counts.cold_stops}")
    if counts.gate_switches:
        parts.append(f"gate switches x{counts.gate_switches}")
    if counts.mode_changes:
        parts.append(f"mode changes x{counts.mode_changes}")
    if counts.invalid_steps:
        parts.append(f"{counts.invalid_steps} with unusable logits")
    how = finish(trace)
    if how not in ("ended", "no_thinking"):
        parts.append(f"thinking: {how.replace('_', ' ')}")
    return Text(", ".join(parts), style="dim")


def _visible(tokenizer: Any, token: int) -> str:
    return repr(token_text(tokenizer, token))[1:-1].replace("\\n", "⏎") or "∅"
