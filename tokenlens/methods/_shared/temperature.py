"""What temperatures that follow the entropy have in common: when they are on, what they divide.

The entropy is the full vocabulary's in nats at temperature 1, after the other logit edits.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from tokenlens.core.columns import Field, Value
from tokenlens.core.method import Admission, Method
from tokenlens.core.rows import Rows
from tokenlens.methods._shared.logits import entropy, retemper
from tokenlens.methods._shared.samplers import EntropyTemperature
from tokenlens.spec.registry import AnyMethod


class TemperatureMethod(Method):
    """Divides the logits by a temperature that :meth:`wanted` makes of the entropy."""

    def __init__(self, name: str, *fields: Field) -> None:
        self.engine = Field(f"{name}.engine_temperature", "float", 1.0)
        self.always = Field(f"{name}.always", "bool", False)
        super().__init__(name, *fields, self.engine, self.always)

    def admit(self, config: AnyMethod, admission: Admission) -> Mapping[Field, Value]:
        assert isinstance(config, EntropyTemperature)
        return {
            self.engine: config.engine_temperature,
            self.always: config.active == "output",
        }

    def edit(self, logits: Tensor, rows: Rows) -> Tensor:
        due = rows[self.on] & (rows[self.always] | rows.thinking)
        nats, logsumexp, due = entropy(logits, due, rows)
        wanted = self.wanted(nats, due, rows)
        if rows.traced:
            rows.record(self.name, torch.where(due, wanted, 0.0))
        return retemper(logits, due, wanted, rows[self.engine], logsumexp)

    def wanted(self, entropy: Tensor, due: Tensor, rows: Rows) -> Tensor:
        """The temperature of each row, ``[num_rows]``, of its entropy in nats where it is due."""
        raise NotImplementedError
