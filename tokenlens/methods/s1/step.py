"""S1, budget forcing (arXiv 2501.19393): an early end of thinking becomes "Wait", a late one comes.

The first ``ignore_end`` ends of thinking are replaced by a text, and the token after it is no end
either. After ``max_thinking`` tokens the end is forced, and a prefix of the answer if one is asked.

An end cannot be taken back once it is sampled: see :mod:`tokenlens.methods._shared.endings` for how
it is replaced with the probability that it has. With ``temperature`` 0 (the authors' setting) that
is when it is the most probable token.

Of an end of several tokens the first one decides, as in the authors' loop, which stops at the first
token of ``<|im_start|>answer``: no engine takes tokens back that it has handed out, and nothing of
the end stays in the text. Where the end is followed as text, that is the first token that can only
begin it: a special token, or one that ends in a bracket and a second sign (``</`` and ``.</``, of
``</think>``), so that another tag which begins the same is replaced as well. An end that is made of
words ("Here is my response:") is told by its last token only: its first words stay.

``published`` and default do the same. The authors' README never forces an end; their evaluation
harness does (``max_thinking``, ``answer_prefix="\\nFinal Answer:"``).
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from tokenlens.core import phases
from tokenlens.core.columns import (
    FORCE_LENGTH,
    MAX_FORCED_TOKENS,
    Field,
    Value,
)
from tokenlens.core.forcing import start_forcing
from tokenlens.core.marker_columns import HOT, transitions, written_end
from tokenlens.core.method import Admission, Method
from tokenlens.core.rows import Rows
from tokenlens.methods._shared.endings import comes_up
from tokenlens.methods._shared.logits import BAN, MAX_SET_IDS, add
from tokenlens.methods.s1.config import S1
from tokenlens.spec import SpecError
from tokenlens.spec.needs import Need
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
HOT_IDS = Field("s1.hot_ids", "int", -1, size=MAX_SET_IDS, fixed=True)
WRITING = Field("s1.writing", "bool", False)  # the text is being written
FRESH = Field("s1.fresh", "bool", False)  # it has just been written


class S1Method(Method):
    """Prolongs thinking that ends too early, and ends what takes too long."""

    def __init__(self) -> None:
        super().__init__(
            "s1",
            *(LEFT, TEXT, LENGTH, LIMIT, FINAL, FINAL_LENGTH, TEMPERATURE, HOT_IDS),
            *(WRITING, FRESH),
        )

    def admit(self, config: AnyMethod, admission: Admission) -> Mapping[Field, Value]:
        assert isinstance(config, S1)
        text = admission.forced_texts[self.name]
        final = admission.end_ids
        if config.answer_prefix is not None:
            final += admission.vocabulary.text(
                config.answer_prefix, "s1.answer_prefix", limit=MAX_FORCED_TOKENS - len(final)
            )
        if admission.ends_thinking(text):
            raise SpecError.of("s1.text", config.text, "a text without the end of thinking")
        hot = admission.end_begins
        if len(hot) > MAX_SET_IDS:
            allowed = f"an end that at most {MAX_SET_IDS} tokens can begin ({len(hot)} can)"
            raise SpecError.of("phase.think_end", config.method, allowed)
        return {
            HOT_IDS: hot,
            LEFT: config.ignore_end,
            TEXT: text,
            LENGTH: len(text),
            LIMIT: -1 if config.max_thinking is None else config.max_thinking,
            FINAL: final,
            FINAL_LENGTH: len(final),
            TEMPERATURE: config.temperature,
        }

    def needs(self, config: AnyMethod) -> Need:
        return Need.FORCING

    def control(self, rows: Rows) -> None:
        spent = (rows[LIMIT] >= 0) & (phases.in_block(rows) >= rows[LIMIT])
        due = rows[self.on] & rows.thinking & spent
        start_forcing(rows, due, rows[FINAL], rows[FINAL_LENGTH], written_end(rows))

    def edit(self, logits: Tensor, rows: Rows) -> Tensor:
        ids = rows[HOT_IDS]
        if Need.LONG_MARKERS in rows.needs:
            ids = torch.where((transitions(rows, ids) & HOT) > 0, ids, -1)
        free = rows[self.on] & rows.thinking & (rows[FORCE_LENGTH] == 0)
        early = free & (rows[LEFT] > 0) & ~rows[FRESH]
        replaced = comes_up(logits, ids, early, rows[TEMPERATURE], rows)
        start_forcing(rows, replaced, rows[TEXT], rows[LENGTH])
        rows.add(LEFT, -replaced.long())
        rows.choose(WRITING, replaced, True)
        bias = torch.where(early | (free & rows[FRESH]), BAN, 0.0)
        rows.record(self.name, bias)
        return add(logits, ids, bias, rows)

    def commit(self, rows: Rows, before: Tensor, sampled: Tensor) -> None:
        done = rows[WRITING] & (rows[FORCE_LENGTH] == 0)
        rows[FRESH] = done
        rows.choose(WRITING, done, False)


STEPS = (S1Method(),)
