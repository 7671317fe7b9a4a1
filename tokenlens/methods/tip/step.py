"""TIP, the thought switching penalty (arXiv 2501.18585, section 4.1).

While fewer than ``beta`` tokens have passed since the current thought began, ``alpha`` is taken off
the logits of the words that switch it. A thought begins with the thinking, and again after each of
these words. The paper's best setting is alpha 3, beta 600; it names markers such as "alternatively"
and no official code was found, so that ``published`` does the same as the default. CyclicReflex's
repository has no such start: its "TIP" is ``static_window``.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from tokenlens.core.columns import THINKING_TOKENS, Field, Phase, Value
from tokenlens.core.method import Admission, Method
from tokenlens.core.rows import Rows
from tokenlens.methods._shared.logits import MAX_WORD_IDS, add, contains
from tokenlens.methods.tip.config import Tip
from tokenlens.spec.registry import AnyMethod

IDS = Field("tip.ids", "int", -1, size=MAX_WORD_IDS, fixed=True)
PENALTY = Field("tip.penalty", "float")
DURATION = Field("tip.duration", "int")
THOUGHT_START = Field("tip.thought_start", "int")  # thinking tokens before the current thought


class TipMethod(Method):
    """Makes the words dearer that end a young thought."""

    def __init__(self) -> None:
        super().__init__("tip", IDS, PENALTY, DURATION, THOUGHT_START)

    def admit(self, config: AnyMethod, admission: Admission) -> Mapping[Field, Value]:
        assert isinstance(config, Tip)
        ids = admission.vocabulary.words(
            config.words,
            "tip.words",
            forms=config.forms,
            unknown=config.unknown_words,
            limit=MAX_WORD_IDS,
        )
        return {IDS: ids, PENALTY: config.penalty, DURATION: config.duration}

    def edit(self, logits: Tensor, rows: Rows) -> Tensor:
        young = rows[THINKING_TOKENS] < rows[THOUGHT_START] + rows[DURATION]
        acts = rows[self.on] & rows.thinking & young
        bias = torch.where(acts, -rows[PENALTY], 0.0)
        rows.record(self.name, bias)
        return add(logits, rows[IDS], bias, rows)

    def commit(self, rows: Rows, before: Tensor, sampled: Tensor) -> None:
        # A thought begins with the thinking, and each time that it is opened again.
        word = contains(rows[IDS], sampled)
        switched = torch.where(before == Phase.THINKING, word, rows.thinking)
        rows.choose(THOUGHT_START, switched, rows[THINKING_TOKENS])


STEPS = (TipMethod(),)
