"""``tokenlens trace tree`` and ``tokenlens trace canonical``."""

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tokenlens.controllers.tree import SteerTrace
from tokenlens.errors import SpecError
from tokenlens.routing.canonical import Stretch, stretches
from tokenlens.routing.discovery import load_vocabulary
from tokenlens.spec.errors import translated
from tokenlens.trace import Recording
from tokenlens.trace.files import open_regular

MAX_BYTES = 256 << 20
"""Of a file of trees."""


def read_trees(path: Path) -> list[SteerTrace]:
    """Trees of a file: one in JSON, or one a line; a server's whole answer will do.

    Raises
    ------
    SpecError
        It holds none.
    """
    with open_regular(str(path)) as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise SpecError.of("file", str(path), f"at most {MAX_BYTES} bytes")
    text = content.decode("utf-8", "replace")
    try:
        found = [json.loads(text)]
    except (ValueError, RecursionError):
        try:
            found = [json.loads(line) for line in text.splitlines() if line.strip()]
        except (ValueError, RecursionError) as error:
            raise SpecError.of(
                "file", str(path), f"JSON, or a JSON object a line ({error})"
            ) from None
    if len(found) == 1 and isinstance(found[0], list):
        found = found[0]
    return [_tree(one) for one in found]


def _tree(data: Any) -> SteerTrace:
    if isinstance(data, dict) and isinstance(data.get("route"), dict):
        data = data["route"]
    try:
        # Tuples and numbers as JSON has them.
        return SteerTrace.model_validate_json(json.dumps(data))
    except ValidationError as error:
        raise translated(SteerTrace, error) from None


def uncanonical(recording: Recording, tokenizer: str) -> tuple[int, list[Stretch]]:
    """Tokens of a trace's text, and where its own encoding is other ids."""
    ids = [step.token for step in recording.trace.steps]
    return len(ids), stretches(load_vocabulary("tokenizer", tokenizer), ids)
