"""AlphaOne (arXiv 2505.24863): slow thinking up to the moment alpha, fast thinking after it.

The moment is ``alpha`` times the average length of this model's thinking. Before it, the end of a
step is followed by "Wait" with a probability that falls linearly from 1 to 0; after it, a "Wait"
that would be sampled ends thinking instead (see :mod:`tokenlens.methods._shared.endings`).

The authors' averages for DeepSeek-R1-Distill-Qwen, aime24 / amc23 / minerva / math500 / olympiad:
1.5B 4500 / 3000 / 3200 / 2450 / 3410; 7B 4600 / 3250 / 3080 / 3100 / 3400; QwQ-32B
2650 / 2320 / 1800 / 2050 / 2410.

=====================  ===============================  ========================================
what                   default                          ``published`` (authors' code)
=====================  ===============================  ========================================
a step ends with       a token that ends in a blank     any token of the encodings of nine texts
                       line                             like ".\\n\\n", so also "." where the
                                                        tokenizer cuts there
words that end it      "wait" in every form             "Wait" as it stands
counted                thinking tokens                  output tokens
=====================  ===============================  ========================================

Not reproduced: the choice by a generator that all requests share, and the replacing of "Wait" in
answers.
"""

import math
from collections.abc import Mapping

import torch
from tokenlens_kernels import philox
from torch import Tensor

from tokenlens.core.columns import (
    END_IDS,
    END_LENGTH,
    FORCE_LENGTH,
    MAX_FORCED_TOKENS,
    POSITION,
    SEED,
    Field,
    Value,
)
from tokenlens.core.forcing import start_forcing
from tokenlens.core.marker_columns import written_end
from tokenlens.core.method import Admission, Method
from tokenlens.core.rows import Rows
from tokenlens.methods._shared.endings import comes_up
from tokenlens.methods._shared.logits import BAN, MAX_SET_IDS, MAX_WORD_IDS, add, contains, counted
from tokenlens.methods.alpha_one.config import AlphaOne
from tokenlens.spec import SpecError
from tokenlens.spec.needs import Need
from tokenlens.spec.registry import AnyMethod

FIRST = 2
"""Tokens before which nothing is forced."""

MOMENT = Field("alpha_one.moment", "int", 1)
TEXT = Field("alpha_one.text", "int", -1, size=MAX_FORCED_TOKENS, fixed=True)
LENGTH = Field("alpha_one.length", "int")
IDS = Field("alpha_one.ids", "int", -1, size=MAX_WORD_IDS, fixed=True)
STEP_ENDS = Field("alpha_one.step_ends", "int", -1, size=MAX_SET_IDS, fixed=True)
STEP_ENDED = Field("alpha_one.step_ended", "bool", False)
TEMPERATURE = Field("alpha_one.temperature", "float")
OUTPUT = Field("alpha_one.output", "bool", False)
PROMPT = Field("alpha_one.prompt", "bool", False)


def slow_probability(count: Tensor, moment: Tensor) -> Tensor:
    """The probability that a step's end is followed by the text, ``[num_rows]`` float64.

    Parameters
    ----------
    count, moment
        ``[num_rows]`` int64, tokens.
    """
    return (1 - count.double() / moment).clamp_min(0)


class AlphaOneMethod(Method):
    """Forces the text after steps while thinking is slow, and ends it at a word when it is fast."""

    def __init__(self) -> None:
        super().__init__(
            "alpha_one",
            *(MOMENT, TEXT, LENGTH, IDS, STEP_ENDS, STEP_ENDED, TEMPERATURE, OUTPUT, PROMPT),
        )

    def admit(self, config: AnyMethod, admission: Admission) -> Mapping[Field, Value]:
        assert isinstance(config, AlphaOne)
        vocabulary = admission.vocabulary
        if config.rules.step_match == "encoded":
            steps = vocabulary.encoded(config.step_ends, "alpha_one.step_ends", limit=MAX_SET_IDS)
        else:
            steps = vocabulary.ending_in(config.step_ends, "alpha_one.step_ends", limit=MAX_SET_IDS)
        text = admission.forced_texts[self.name]
        if admission.ends_thinking(text):
            raise SpecError.of("alpha_one.text", config.text, "a text without the end of thinking")
        return {
            # The authors round the tokens that are left after the moment down.
            MOMENT: math.ceil(config.alpha * config.average_thinking),
            TEXT: text,
            LENGTH: len(text),
            IDS: vocabulary.words(
                config.words,
                "alpha_one.words",
                forms=config.rules.forms,
                unknown=config.rules.unknown_words,
                limit=MAX_WORD_IDS,
            ),
            STEP_ENDS: steps,
            TEMPERATURE: config.temperature,
            OUTPUT: config.rules.counted == "output",
            PROMPT: config.count_prompt,
        }

    def needs(self, config: AnyMethod) -> Need:
        return Need.FORCING

    def control(self, rows: Rows) -> None:
        count = counted(rows, rows[OUTPUT], rows[PROMPT])
        draw = philox.uniform(rows[SEED], philox.offset(rows[POSITION], 0, philox.SCHEDULE))
        due = rows[self.on] & rows.thinking & rows[STEP_ENDED] & (count >= FIRST)
        due = due & (draw < slow_probability(count, rows[MOMENT]))
        start_forcing(rows, due, rows[TEXT], rows[LENGTH])

    def edit(self, logits: Tensor, rows: Rows) -> Tensor:
        count = counted(rows, rows[OUTPUT], rows[PROMPT])
        fast = rows[self.on] & rows.thinking & (rows[FORCE_LENGTH] == 0)
        fast = fast & (count >= rows[MOMENT])
        ends = comes_up(logits, rows[IDS], fast, rows[TEMPERATURE], rows)
        start_forcing(rows, ends, rows[END_IDS], rows[END_LENGTH], written_end(rows))
        bias = torch.where(fast, BAN, 0.0)
        rows.record(self.name, bias)
        return add(logits, rows[IDS], bias, rows)

    def commit(self, rows: Rows, before: Tensor, sampled: Tensor) -> None:
        rows[STEP_ENDED] = contains(rows[STEP_ENDS], sampled)


STEPS = (AlphaOneMethod(),)
