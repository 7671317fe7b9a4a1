"""Training batches: teacher traces as padded token tensors, and their hash.

Scope: from a seed to batches. The stream is a function of the seed alone.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from teacher import traces
from tokenizer import END_THINK, PAD, STEP_SEPARATOR, THINK, prompt_text, reply_text
from torch import Tensor

from tokenlens.evaluation.countdown import Problem, problems, prompt

#: Share of the traces shown without thinking, so that ``enable_thinking=False`` is not a surprise.
NO_THINKING_SHARE = 0.04
#: The first token of a step is a choice; the rest is forced and soon learned.
FIRST_TOKEN_WEIGHT = 2.0
#: Whether the result is the target (go back, or stop) is learned last and decides everything.
DECISION_WEIGHT = 4.0
#: Sequences that are sorted by length together.
BUCKET = 1000
EARLY_MIX = {2: 0.6, 3: 0.25, 4: 0.15}
LATE_MIX = {2: 0.06, 3: 0.34, 4: 0.6}


@dataclass(frozen=True)
class Batch:
    """One training batch; all tensors are ``[batch, length]``."""

    ids: Tensor
    # Weight of each position's *next* token in the loss; 0 for the prompt and the padding. float32
    weights: Tensor
    # Whether a position holds a thinking token (not the markers): only those may become mixtures.
    thinking: Tensor


def training_pools() -> dict[int, list[Problem]]:
    """Return the training problems by the number of their numbers."""
    return {count: problems("train", count) for count in (2, 3, 4)}


class Data:
    """Batches of about ``batch_tokens`` padded tokens, and the running hash of all of them."""

    def __init__(self, tokenizer, seed: int, batch_tokens: int, early_traces: int) -> None:
        self._encode = tokenizer
        self._seed = seed
        self._batch_tokens = batch_tokens
        self._early_traces = early_traces
        self._hash = hashlib.sha256()
        ids = tokenizer.convert_tokens_to_ids
        self._think, self._end_think = ids(THINK), ids(END_THINK)
        self._separator, self._pad = ids(STEP_SEPARATOR), ids(PAD)
        self._wait = ids("wait")

    @property
    def sha256(self) -> str:
        """Hash of all token ids given out so far, in order."""
        return self._hash.hexdigest()

    def _texts(self) -> Iterator[tuple[str, str]]:
        mix = dict(EARLY_MIX)
        rng = random.Random(f"{self._seed}:mode")
        for number, trace in enumerate(traces(self._seed, training_pools(), mix)):
            if number == self._early_traces:
                mix.update(LATE_MIX)
            user, answer = prompt(trace.problem), ",".join(trace.answer)
            if rng.random() < NO_THINKING_SHARE:
                yield prompt_text(user, thinking=False), f"{answer}<|im_end|>"
            else:
                yield prompt_text(user), reply_text(trace.thinking, answer)

    def _row(self, prompt_ids: list[int], reply_ids: list[int]):
        ids = prompt_ids + reply_ids
        weights = [0.0] * (len(prompt_ids) - 1) + [1.0] * len(reply_ids) + [0.0]
        thinking = [False] * len(ids)
        inside = False
        for position in range(len(prompt_ids), len(ids)):
            if ids[position] == self._end_think:
                inside = False
            if inside:
                thinking[position] = True
                if ids[position] == self._separator or ids[position - 1] == self._think:
                    decides = ids[position + 1] in (self._wait, self._end_think)
                    weights[position] = DECISION_WEIGHT if decides else FIRST_TOKEN_WEIGHT
            if ids[position] == self._think:
                inside = True
        return ids, weights, thinking

    def __iter__(self) -> Iterator[Batch]:
        texts = self._texts()
        shuffle = random.Random(f"{self._seed}:order")
        while True:
            pairs = [next(texts) for _ in range(BUCKET)]
            encoded = self._encode([t for pair in pairs for t in pair], add_special_tokens=False)
            flat = encoded["input_ids"]
            rows = [self._row(flat[i], flat[i + 1]) for i in range(0, len(flat), 2)]
            rows.sort(key=lambda row: len(row[0]))
            groups, start = [], 0
            for end in range(1, len(rows) + 1):
                full = end == len(rows)
                if full or (end - start + 1) * len(rows[end][0]) > self._batch_tokens:
                    groups.append(rows[start:end])
                    start = end
            shuffle.shuffle(groups)
            for group in groups:
                yield self._batch(group)

    def _batch(self, rows) -> Batch:
        length = max(len(row[0]) for row in rows)
        padded = [ids + [self._pad] * (length - len(ids)) for ids, _, _ in rows]
        for ids in padded:
            self._hash.update(bytes(ids))
        return Batch(
            ids=torch.tensor(padded),
            weights=torch.tensor([w + [0.0] * (length - len(w)) for _, w, _ in rows]),
            thinking=torch.tensor([t + [False] * (length - len(t)) for _, _, t in rows]),
        )
