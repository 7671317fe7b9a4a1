"""Controls that end thinking: at once (``no_thinking``) or after some tokens (``answer_now``).

Thinking that is opened once more is ended once more. They separate what the latent phase does from
what the text after it does (the *floor* and *forced* arms of ``docs/architecture.md``). The forced
text is the end marker, or a text of the user's.
"""

from collections.abc import Mapping

import torch

from tokenlens.core import phases
from tokenlens.core.columns import MAX_FORCED_TOKENS, Field, Value
from tokenlens.core.forcing import start_forcing
from tokenlens.core.marker_columns import written_end
from tokenlens.core.method import Admission, Method
from tokenlens.core.rows import Rows
from tokenlens.methods.answer_now.config import AnswerNow
from tokenlens.spec.needs import Need
from tokenlens.spec.registry import AnyMethod


class EndThinkingMethod(Method):
    """Forces a text once a request has thought for ``after`` tokens."""

    def __init__(self, name: str) -> None:
        self.after = Field(f"{name}.after", "int")
        self.text = Field(f"{name}.text", "int", -1, size=MAX_FORCED_TOKENS, fixed=True)
        self.length = Field(f"{name}.length", "int")
        self.done = Field(f"{name}.done", "bool", False)
        self.ends = Field(f"{name}.ends", "bool", True)
        self.as_end = Field(f"{name}.as_end", "bool", False)  # the text is the end marker
        fields = self.after, self.text, self.length, self.done, self.ends, self.as_end
        super().__init__(name, *fields)

    def admit(self, config: AnyMethod, admission: Admission) -> Mapping[Field, Value]:
        text = admission.forced_texts.get(self.name, admission.end_ids)
        after = config.after if isinstance(config, AnswerNow) else 0
        ends = admission.ends_thinking(text)
        return {
            self.after: after,
            self.text: text,
            self.length: len(text),
            self.ends: ends,
            self.as_end: text == admission.end_ids,
        }

    def needs(self, config: AnyMethod) -> Need:
        return Need.FORCING

    def control(self, rows: Rows) -> None:
        thought = phases.in_block(rows) >= rows[self.after]
        due = rows[self.on] & rows.thinking & thought & ~rows[self.done]
        at = rows.constant(0)
        if Need.LONG_MARKERS in rows.needs:
            # An end that the model has just begun is completed.
            at = torch.where(rows[self.as_end], written_end(rows), at)
        start_forcing(rows, due, rows[self.text], rows[self.length], at)
        # Once: a text of the user's need not hold the end marker.
        rows.choose(self.done, due & ~rows[self.ends], True)


STEPS = (EndThinkingMethod("answer_now"),)
