"""A thinking budget: a soft ramp on the end marker, then a stop, at once or at the end of a step.

The stop is a forced sequence, the end marker or a text that holds it. Where the model has just
begun to write that sequence itself, it is only completed: nothing is written twice.

It composes with an engine's own budget (vLLM's ``thinking_token_budget``): both count, the smaller
one ends thinking, and after that neither does anything. Where both strike at the same step the
engine's text wins, because it edits the logits last.

Like vLLM and SGLang, and unlike budgets that count the whole output, it counts thinking tokens, and
those that the prompt already holds (``count_prompt``). It is one budget for all thinking of one
output: a second block has what the first one left, and ends at once if that is nothing.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from tokenlens.core.columns import END_IDS, MAX_FORCED_TOKENS, Field, Value
from tokenlens.core.forcing import start_forcing
from tokenlens.core.marker_columns import written_end
from tokenlens.core.method import Admission, Method
from tokenlens.core.rows import Rows
from tokenlens.methods._shared.endings import written
from tokenlens.methods._shared.logits import MAX_SET_IDS, add, contains, counted
from tokenlens.methods.thinking_budget.config import ThinkingBudget
from tokenlens.spec import SpecError
from tokenlens.spec.needs import Need
from tokenlens.spec.registry import AnyMethod

BUDGET = Field("thinking_budget.budget", "int")
LATEST = Field("thinking_budget.latest", "int")  # the budget and its grace
OUTPUT = Field("thinking_budget.output", "bool", False)
PROMPT = Field("thinking_budget.prompt", "bool", False)
RAMP_START = Field("thinking_budget.ramp_start", "int")
STRENGTH = Field("thinking_budget.strength", "float")
TEXT = Field("thinking_budget.text", "int", -1, size=MAX_FORCED_TOKENS, fixed=True)
LENGTH = Field("thinking_budget.length", "int")
TEXT_AT = Field("thinking_budget.text_at", "int")
AS_END = Field("thinking_budget.as_end", "bool", False)  # the text is the end marker
STEP_ENDS = Field("thinking_budget.step_ends", "int", -1, size=MAX_SET_IDS, fixed=True)
STEP_ENDED = Field("thinking_budget.step_ended", "bool", False)


def ramp(count: Tensor, start: Tensor, budget: Tensor) -> Tensor:
    """From 0 where the ramp starts to 1 at the budget, ``[num_rows]`` float64."""
    return ((count - start).double() / (budget - start).clamp_min(1)).clamp(0, 1)


class ThinkingBudgetMethod(Method):
    """Ends thinking when it has had its tokens."""

    def __init__(self) -> None:
        super().__init__(
            "thinking_budget",
            *(BUDGET, LATEST, OUTPUT, PROMPT, RAMP_START, STRENGTH),
            *(TEXT, LENGTH, TEXT_AT, AS_END, STEP_ENDS, STEP_ENDED),
        )

    def admit(self, config: AnyMethod, admission: Admission) -> Mapping[Field, Value]:
        assert isinstance(config, ThinkingBudget)
        end = admission.end_ids
        text = admission.forced_texts.get(self.name, end)
        if not admission.ends_thinking(text):
            raise SpecError.of(
                f"{self.name}.text", config.text, "a text with the end marker, which ends thinking"
            )
        steps: tuple[int, ...] = ()
        if config.stop == "step":
            steps = admission.vocabulary.ending_in(
                (config.step_end,), f"{self.name}.step_end", limit=MAX_SET_IDS
            )
        return {
            BUDGET: config.budget,
            LATEST: config.budget + (config.grace if config.stop == "step" else 0),
            OUTPUT: config.counted == "output",
            PROMPT: config.count_prompt,
            RAMP_START: round(config.budget * (1 - config.ramp)),
            STRENGTH: config.ramp_strength if config.ramp else 0.0,
            TEXT: text,
            LENGTH: len(text),
            AS_END: text == end,
            STEP_ENDS: steps,
            STEP_ENDED: config.stop == "hard",
        }

    def needs(self, config: AnyMethod) -> Need:
        return Need.FORCING

    def edits(self, config: AnyMethod) -> bool:
        assert isinstance(config, ThinkingBudget)
        return config.ramp > 0

    def control(self, rows: Rows) -> None:
        count = counted(rows, rows[OUTPUT], rows[PROMPT])
        spent = ((count >= rows[BUDGET]) & rows[STEP_ENDED]) | (count >= rows[LATEST])
        due = rows[self.on] & rows.thinking & spent
        at = rows[TEXT_AT]
        if Need.LONG_MARKERS in rows.needs:
            # Its first token may have been merged with what stands before.
            at = torch.where(rows[AS_END], written_end(rows), at)
        start_forcing(rows, due, rows[TEXT], rows[LENGTH], at)

    def edit(self, logits: Tensor, rows: Rows) -> Tensor:
        count = counted(rows, rows[OUTPUT], rows[PROMPT])
        bonus = rows[STRENGTH] * ramp(count, rows[RAMP_START], rows[BUDGET])
        acts = rows[self.on] & rows.thinking
        next_of_end = rows[END_IDS].gather(1, written_end(rows)[:, None])
        bias = torch.where(acts, bonus, 0.0)
        rows.record(self.name, bias)
        return add(logits, next_of_end, bias, rows)

    def commit(self, rows: Rows, before: Tensor, sampled: Tensor) -> None:
        rows[TEXT_AT] = written(rows[TEXT_AT], rows[TEXT], rows[LENGTH], sampled)
        if rows.uses(STEP_ENDS):
            waits = rows[STEP_ENDS][:, 0] >= 0
            rows.choose(STEP_ENDED, waits, contains(rows[STEP_ENDS], sampled))


STEPS = (ThinkingBudgetMethod(),)
