"""Budget Guidance (arXiv 2506.13752): tokens weighed by whether thinking then fits a budget.

Behind a token that ends a line, and at the first step, a predictor reads the hidden states of all
layers and gives for every token a Gamma distribution of ``ln(remaining + 1)``, remaining thinking
tokens if this token comes next. Its cumulative probability at the budget that is left is the
token's weight. Where all weights are 0 the most probable token stays.

======================  =============================  ====================================
what                    default                        ``published`` (authors' code)
======================  =============================  ====================================
tokens that count       all                            those whose predictor is sure
                                                       (``quirks.sure_only``)
======================  =============================  ====================================

Not reproduced: the code samples the weighed steps at temperature 1 without filters; here the
engine's temperature and filters come behind the weights.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from tokenlens.core import phases
from tokenlens.core.columns import Field, Value
from tokenlens.core.method import Admission, Method
from tokenlens.core.rows import Rows
from tokenlens.methods import files
from tokenlens.methods._shared.logits import MAX_SET_IDS, contains
from tokenlens.methods.budget_guidance import predictor
from tokenlens.methods.budget_guidance.config import BudgetGuidance
from tokenlens.spec import SpecError
from tokenlens.spec.needs import Need
from tokenlens.spec.registry import AnyMethod

LEAST_RATE, LEAST_MODE = 10.0, 0.9

FILE = Field("budget_guidance.file", "int", -1, fixed=True)
BUDGET = Field("budget_guidance.budget", "int", fixed=True)
GATE = Field("budget_guidance.gate", "bool", fixed=True)
LINE_ENDS = Field("budget_guidance.line_ends", "int", -1, size=MAX_SET_IDS, fixed=True)
AT_LINE = Field("budget_guidance.at_line", "bool", True)


def weights(alpha: Tensor, rate: Tensor, remaining: Tensor, gate: Tensor) -> Tensor:
    """What each token weighs, ``[num_rows, vocab]``, a row of zeros where none counts.

    Parameters
    ----------
    alpha, rate
        ``[num_rows, vocab]`` float: of the Gammas.
    remaining
        ``[num_rows]``: thinking tokens that are left, at least 1.
    gate
        ``[num_rows]`` bool: only tokens whose predictor is sure count.
    """
    within = torch.special.gammainc(alpha, rate * (remaining + 1).log()[:, None])
    within = torch.where(within.isfinite(), within, 0.0).clamp(0, 1)
    mode = ((alpha - 1) / rate).exp() - 1
    sure = (rate >= LEAST_RATE) & (alpha > 1) & (mode >= LEAST_MODE)
    within = torch.where(gate[:, None] & ~sure, 0.0, within)
    total = within.sum(dim=1, keepdim=True)
    return torch.where(total > 0, within / total, within)


def weighed(logits: Tensor, weight: Tensor) -> Tensor:
    """Logits whose softmax is the product, ``[num_rows, vocab]``; all zeros: the arg-max alone."""
    top = torch.zeros_like(logits).scatter_(1, logits.argmax(dim=1, keepdim=True), 1.0)
    any_left = (weight > 0).any(dim=1, keepdim=True)
    return logits + torch.where(any_left, weight.to(logits.dtype), top).log()


class BudgetGuidanceMethod(Method):
    """Adds the logarithms of the weights at line ends."""

    def __init__(self) -> None:
        super().__init__("budget_guidance", FILE, BUDGET, GATE, LINE_ENDS, AT_LINE)

    def admit(self, config: AnyMethod, admission: Admission) -> Mapping[Field, Value]:
        assert isinstance(config, BudgetGuidance)
        file = files.find("budget_guidance.file", config.file)
        hidden = None if admission.shape is None else admission.shape.hidden_size
        predictor.check(file, "budget_guidance.file", hidden, admission.vocab_size)
        ids = admission.vocabulary.ending_in(("\n",), "budget_guidance.method", limit=MAX_SET_IDS)
        if not ids:
            raise SpecError.of(
                "budget_guidance.method", config.method, "a tokenizer with tokens that end a line"
            )
        return {
            FILE: file.number,
            BUDGET: config.budget,
            GATE: config.rules.sure_only,
            LINE_ENDS: ids,
        }

    def needs(self, config: AnyMethod) -> Need:
        return Need.LAYER_STATES

    def edit(self, logits: Tensor, rows: Rows) -> Tensor:
        assert rows.layers is not None
        due = rows[self.on] & rows.thinking & rows[AT_LINE]
        states = rows.layers.states()
        size = rows.vocab_size
        left = (rows[BUDGET] - phases.in_block(rows)).clamp(min=1)
        for number in rows.files(FILE):
            w = files.on_device(number, states.device)
            heads = int(files.numbered(number).about["heads"])
            alpha, rate = predictor.predict(states, w, heads)
            here = due & (rows[FILE] == number)
            weight = weights(alpha[:, :size], rate[:, :size], left, rows[GATE])
            seen = logits[:, :size].float()
            edited = logits.clone()
            edited[:, :size] = weighed(seen, weight.to(logits.device)).to(logits.dtype)
            logits = torch.where(here[:, None], edited, logits)
        if rows.traced:
            rows.record(self.name, due.float())
        return logits

    def commit(self, rows: Rows, before: Tensor, sampled: Tensor) -> None:
        rows[AT_LINE] = contains(rows[LINE_ENDS], sampled)


STEPS = (BudgetGuidanceMethod(),)
