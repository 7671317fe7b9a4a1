"""S1, budget forcing (arXiv 2501.19393): an early end of thinking becomes "Wait", a late one comes.

The first ``ignore_end`` ends of thinking are replaced by a text, and the token after it is no end
either. After ``max_thinking`` tokens the end is forced, and a prefix of the answer if one is asked.

An end cannot be taken back once it is sampled: see :mod:`tokenlens.methods.endings` for how it is
replaced with the probability that it has. With ``temperature`` 0 (the authors' setting) that is
when it is the most probable token.

``published`` and default do the same. The authors' README never forces an end; their evaluation
harness does (``max_thinking``, ``answer_prefix="\\nFinal Answer:"``).
"""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from tokenlens.methods.base import (
    END_IDS,
    END_LENGTH,
    FORCE_LENGTH,
    FORCES,
    MAX_FORCED_TOKENS,
    THINKING_TOKENS,
    Admission,
    Field,
    Method,
    Rows,
    Value,
    start_forcing,
)
from tokenlens.methods.endings import comes_up, written
from tokenlens.methods.logits import BAN, add
from tokenlens.spec import SpecError
from tokenlens.spec.budgets import S1
from tokenlens.spec.registry import AnyMethod

LEFT = Field("s1.left", "int")  # ends that are still to be replaced
TEXT = Field("s1.text", "int", -1, size=MAX_FORCED_TOKENS, fixed=True)
LENGTH = Field("s1.length", "int")
LIMIT = Field("s1.limit", "int", -1)  # thinking tokens; -1 = none
FINAL = Field(
    "s1.final", "int", -1, size=MAX_FORCED_TOKENS, fixed=True
)  # the end and the answer's prefix
FINAL_LENGTH = Field("s1.final_length", "int")
TEMPERATURE = Field("s1.temperature", "float")
END_AT = Field("s1.end_at", "int")
WRITING = Field("s1.writing", "bool", False)  # the text is being written
FRESH = Field("s1.fresh", "bool", False)  # it has just been written


class S1Method(Method):
    """Prolongs thinking that ends too early, and ends what takes too long."""

    def __init__(self) -> None:
        super().__init__(
            "s1",
            *(LEFT, TEXT, LENGTH, LIMIT, FINAL, FINAL_LENGTH, TEMPERATURE, END_AT, WRITING, FRESH),
        )

    def admit(self, config: AnyMethod, admission: Admission) -> Mapping[Field, Value]:
        assert isinstance(config, S1)
        text = admission.forced_texts[self.name]
        final = admission.end_ids
        if config.answer_prefix is not None:
            final += admission.vocabulary.text(
                config.answer_prefix, "s1.answer_prefix", limit=MAX_FORCED_TOKENS - len(final)
            )
        if any(text[i : i + len(admission.end_ids)] == admission.end_ids for i in range(len(text))):
            raise SpecError.of("s1.text", config.text, "a text without the end of thinking")
        return {
            LEFT: config.ignore_end,
            TEXT: text,
            LENGTH: len(text),
            LIMIT: -1 if config.max_thinking is None else config.max_thinking,
            FINAL: final,
            FINAL_LENGTH: len(final),
            TEMPERATURE: config.temperature,
        }

    def traits(self, config: AnyMethod) -> Collection[str]:
        return (FORCES, "s1.edit")

    def control(self, rows: Rows) -> None:
        spent = (rows[LIMIT] >= 0) & (rows[THINKING_TOKENS] >= rows[LIMIT])
        due = rows[self.on] & rows.thinking & spent
        start_forcing(rows, due, rows[FINAL], rows[FINAL_LENGTH], rows[END_AT])

    def edit(self, logits: Tensor, rows: Rows) -> Tensor:
        # [num_rows, 1]: the token that would complete the end marker
        last = rows[END_IDS].gather(1, rows[END_AT][:, None])
        free = rows[self.on] & rows.thinking & (rows[FORCE_LENGTH] == 0)
        completes = free & (rows[END_AT] == rows[END_LENGTH] - 1)
        early = completes & (rows[LEFT] > 0) & ~rows[FRESH]
        replaced = comes_up(logits, last, early, rows[TEMPERATURE], rows)
        start_forcing(rows, replaced, rows[TEXT], rows[LENGTH])
        rows.add(LEFT, -replaced.long())
        rows.choose(WRITING, replaced, True)
        bias = torch.where(early | (completes & rows[FRESH]), BAN, 0.0)
        rows.note(self.name, bias)
        return add(logits, last, bias)

    def commit(self, rows: Rows, before: Tensor, sampled: Tensor) -> None:
        rows[END_AT] = written(rows[END_AT], rows[END_IDS], rows[END_LENGTH], sampled)
        done = rows[WRITING] & (rows[FORCE_LENGTH] == 0)
        rows[FRESH] = done
        rows.choose(WRITING, done, False)
