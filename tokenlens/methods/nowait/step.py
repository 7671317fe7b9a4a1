"""NoWait (arXiv 2506.08343): tokens of words that announce a reflection are not sampled.

=====================  ================================  =======================================
what                   default                           ``published`` (the paper's rule, as a
                                                         third party's code has it)
=====================  ================================  =======================================
tokens                 those that hold a word whole      those that hold it anywhere, "company"
                       (" But", "wait,")                 for "any" included, but for four words
acts                   while thinking                    always
=====================  ================================  =======================================

Case does not matter. A word that the model spells with several tokens is not banned, and a token
that begins a longer word (" but" of "butter") is. End markers and end-of-text tokens always stay.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from tokenlens.core.columns import Field, Value
from tokenlens.core.method import Admission, Method
from tokenlens.core.rows import Rows
from tokenlens.methods._shared.logits import BAN, MAX_SET_IDS, add
from tokenlens.methods.nowait.config import NoWait
from tokenlens.spec.registry import AnyMethod

IDS = Field("nowait.ids", "int", -1, size=MAX_SET_IDS, fixed=True)
ALWAYS = Field("nowait.always", "bool", False)


class NoWaitMethod(Method):
    """Puts the banned tokens beneath all others."""

    def __init__(self) -> None:
        super().__init__("nowait", IDS, ALWAYS)

    def admit(self, config: AnyMethod, admission: Admission) -> Mapping[Field, Value]:
        assert isinstance(config, NoWait)
        ids = admission.vocabulary.matching(
            config.words,
            "nowait.words",
            exclude=config.rules.exclude,
            whole=config.rules.match == "word",
            limit=MAX_SET_IDS,
        )
        kept = {*admission.end_ids, *admission.eos_ids}
        return {IDS: [i for i in ids if i not in kept], ALWAYS: config.rules.active == "output"}

    def edit(self, logits: Tensor, rows: Rows) -> Tensor:
        acts = rows[self.on] & (rows[ALWAYS] | rows.thinking)
        bias = torch.where(acts, BAN, 0.0)
        rows.record(self.name, bias)
        return add(logits, rows[IDS], bias, rows)


def pattern_of(config: NoWait) -> str:
    """The rule as a regular expression, which a search through an index is held against."""
    words = "|".join(map(re.escape, config.words))
    found = rf"(?<!\w)(?:{words})(?!\w)" if config.rules.match == "word" else f"(?:{words})"
    excluded = "|".join(map(re.escape, config.rules.exclude))
    return rf"(?is)\A(?!.*(?:{excluded})).*{found}" if excluded else rf"(?i){found}"


STEPS = (NoWaitMethod(),)
