"""One HTML page that shows traces: no network, no framework, everything inside."""

import json
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from typing import Any

from tokenlens.trace.lines import Recording, token_ids
from tokenlens.trace.plots import thresholds

SCRIPTS = ("model.js", "tokens.js", "chart.js", "app.js")
MAX_SHOWN = 64
"""Traces in one page; a file may hold more."""


def page(recordings: Sequence[Recording], *, title: str = "trace", fault: str = "") -> str:
    """The page.

    Parameters
    ----------
    recordings
        What to show; the page lets choose one, or two side by side.
    fault
        What was wrong with the file, shown on top.
    """
    shown = recordings[:MAX_SHOWN]
    if len(shown) < len(recordings):
        fault = f"{fault} Shown: {MAX_SHOWN} of {len(recordings)} traces.".strip()
    data = {"title": title, "fault": fault, "traces": [columns(one) for one in shown]}
    # A token's text must not end the script element that it stands in.
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    parts = files("tokenlens.trace") / "page"
    script = "\n".join((parts / name).read_text(encoding="utf-8") for name in SCRIPTS)
    return (
        (parts / "viewer.html")
        .read_text(encoding="utf-8")
        .replace("{{title}}", escape(title))
        .replace("{{style}}", (parts / "viewer.css").read_text(encoding="utf-8"))
        .replace("{{script}}", script)
        # Last: what a user wrote is not searched for our marks.
        .replace("{{data}}", text)
    )


def frame(recording: Recording, height: int = 560) -> str:
    """The page in a frame of its own, for notebooks."""
    return (
        f'<iframe sandbox="allow-scripts" style="width:100%;height:{height}px;border:0"'
        f' srcdoc="{escape(page([recording]))}"></iframe>'
    )


def columns(recording: Recording) -> dict[str, Any]:
    """A trace as columns, which take a third of the space of records."""
    trace = recording.trace
    steps = trace.steps
    mentioned = {token for step in steps for token in token_ids(step)}
    return {
        "engine": trace.engine,
        "model": recording.model,
        "prompt": recording.prompt,
        "complete": recording.complete,
        "counts": trace.counts.model_dump(),
        "dropped": trace.dropped_steps,
        "spec": trace.spec.model_dump_json(indent=1, exclude_defaults=True),
        "thresholds": list(thresholds(trace.spec)),
        "texts": {token: recording.text(token) for token in sorted(mentioned)},
        "pieces": recording.pieces,
        "position": [step.position for step in steps],
        "token": [step.token for step in steps],
        "phase": "".join(step.phase[0] for step in steps),
        "latent": "".join("01"[step.latent] for step in steps),
        "forced": "".join("01"[step.forced] for step in steps),
        "valid": "".join("01"[step.valid] for step in steps),
        "entropy": [round(step.entropy, 4) for step in steps],
        "top": [round(step.max_probability, 4) for step in steps],
        "entries": [
            [part for token, weight in step.entries for part in (token, round(weight, 4))]
            for step in steps
        ],
        "edits": {
            name: [
                None if (amount := (step.edits or {}).get(name)) is None else round(amount, 4)
                for step in steps
            ]
            for name in dict.fromkeys(name for step in steps for name in step.edits or ())
        },
        "switch": {i: step.switch for i, step in enumerate(steps) if step.switch is not None},
    }
