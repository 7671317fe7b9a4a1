"""What the truncations have in common: when they are on, and how a row is cut.

They run before anything else looks at the logits, so that a concept token's own filters see what is
left. Tokens that are not kept get -inf. A row without anything usable stays as it is.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from tokenlens.core.columns import Field, Value
from tokenlens.core.method import Admission, Method
from tokenlens.core.rows import Rows
from tokenlens.methods._shared.logits import truncate, usable
from tokenlens.methods._shared.samplers import SamplerMethod
from tokenlens.spec.registry import AnyMethod


class TruncationMethod(Method):
    """What the three have in common: when they are on, and how a row is cut."""

    def __init__(self, name: str, *fields: Field) -> None:
        self.always = Field(f"{name}.always", "bool", False)
        super().__init__(name, self.always, *fields)

    def admit(self, config: AnyMethod, admission: Admission) -> Mapping[Field, Value]:
        assert isinstance(config, SamplerMethod)
        return {self.always: config.active == "output"}

    def edit(self, logits: Tensor, rows: Rows) -> Tensor:
        real = logits[:, : rows.vocab_size]
        due = rows[self.on] & (rows[self.always] | rows.thinking)
        due, keep = due & usable(real), self.keep(real, rows)
        if rows.traced:
            rows.record(self.name, torch.where(due, keep.sum(dim=1), 0))
        return truncate(logits, due, keep)

    def keep(self, logits: Tensor, rows: Rows) -> Tensor:
        """The tokens that stay, ``[num_rows, vocab]`` bool."""
        raise NotImplementedError
