"""Make it dearer to say the last token once more."""

from typing import Literal

import torch
from pydantic import Field

from tokenlens.methods import Column, Method, method
from tokenlens.spec import MethodBase


class NoEcho(MethodBase):
    """Take ``penalty`` off the logit of the token that was sampled at the step before."""

    method: Literal["no_echo"] = "no_echo"
    penalty: float = Field(2.0, ge=0, le=100, description="in logits")


PENALTY = Column("no_echo.penalty", "float", fixed=True)
LAST = Column("no_echo.last", "int", -1)  # -1: nothing was sampled yet


@method(NoEcho, after="nowait")
class NoEchoMethod(Method):
    """Remembers one token a request, in a column."""

    def __init__(self):
        super().__init__("no_echo", PENALTY, LAST)

    def admit(self, config, admission):
        return {PENALTY: config.penalty}

    def edit(self, logits, rows):
        # [num_rows]
        due = rows[self.on] & (rows[LAST] >= 0)
        penalty = torch.where(due, rows[PENALTY], 0.0)
        rows.record(self.name, -penalty)
        last = rows[LAST].clamp(min=0)[:, None]
        return logits.scatter_add(1, last, -penalty[:, None].to(logits.dtype))

    def commit(self, rows, before, sampled):
        rows.choose(LAST, rows[self.on], sampled)
