"""What ``tokenlens trace verify`` does: a model, traces, and their replays in words."""

import re
from pathlib import Path

import torch

from tokenlens.cli import models
from tokenlens.hf.verify import Verification, verify_trace
from tokenlens.trace import Recording
from tokenlens.trace.records import MAX_PROMPT_IDS

MAX_FILE_BYTES = 1 << 20
"""Of a file of token ids."""

HINT = (
    "If the model was served in half precision, its signals are off by what that rounds: compare"
    " the two columns, and give --tolerance. A penalty or a bias of the engine's own, another"
    " checkpoint and another version of the tokenizer show as differences too."
)


class Replays:
    """Replays of traces through one model, loaded once."""

    def __init__(self, model: str, prompt_ids: str, tolerance: float) -> None:
        self._given = _ids(prompt_ids) if prompt_ids else None
        self._tolerance = tolerance
        self._model, self._tokenizer = models.load(model, torch.float32)

    def of(self, one: Recording) -> Verification:
        """Replay one trace."""
        ids = self._given
        if ids is None and not one.trace.prompt_ids and one.trace.steps:
            ids = self._read_off(one.prompt, one.trace.steps[0].position)
        return verify_trace(
            self._model, self._tokenizer, one.trace, prompt_ids=ids, tolerance=self._tolerance
        )

    def _read_off(self, prompt: str, length: int) -> list[int] | None:
        """Tokens of a prompt's text, as it is or as a user's turn, if they are as many."""
        texts = [(prompt, True)]
        if getattr(self._tokenizer, "chat_template", None):
            turn = [{"role": "user", "content": prompt}]
            text = self._tokenizer.apply_chat_template(
                turn, tokenize=False, add_generation_prompt=True
            )
            texts.append((text, False))
        for text, special in texts:
            ids = self._tokenizer(text, add_special_tokens=special)["input_ids"]
            if text and len(ids) == length:
                return list(ids)
        return None


def row(
    number: int | None = None, engine: str = "", found: Verification | None = None
) -> list[str]:
    """The cells of one trace; without one, the names of the columns."""
    if found is None:
        return [
            *("trace", "engine", "steps", "mixtures"),
            *("off, fed as traced", "off, fed the visible tokens", "what was fed is"),
        ]
    tokens = "–" if found.tokens is None else f"{found.tokens.largest:.2g}"
    verdict = found.verdict
    if found.parted:
        place, name = found.parted[0]
        verdict += f": {name} at {place}, {len(found.parted)} in all"
    elif not found.holds:
        verdict += f": at {found.traced.at}"
    cells = [number, engine, found.steps, found.mixtures, f"{found.traced.largest:.2g}", tokens]
    return [*map(str, cells), verdict]


def _ids(text: str) -> list[int]:
    path = Path(text)
    if not re.fullmatch(r"[\d\s,\[\]]+", text):
        with path.open("rb") as file:
            text = file.read(MAX_FILE_BYTES).decode(errors="replace")
    found = re.findall(r"\d+", text) if re.fullmatch(r"[\d\s,\[\]]+", text) else []
    if not 0 < len(found) <= MAX_PROMPT_IDS:
        raise ValueError(
            f"--prompt-ids: got {len(found)} ids; allowed: 1 to {MAX_PROMPT_IDS:,} whole numbers"
            " with commas or blanks between them"
        )
    return [int(one) for one in found]
