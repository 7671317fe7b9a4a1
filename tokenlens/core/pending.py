"""What the last step decided, until its tokens are committed. Knows no methods and no engine."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tokenlens.core.columns import Field
from tokenlens.core.rows import Live, Rows
from tokenlens.core.slots import SlotTable


class Intent(NamedTuple):
    """What a step decided, per row, beside the columns that it wrote."""

    # [num_rows] bool: the next input is a mixture if the recorded token is the one sampled
    latent: Tensor
    # [num_rows] bool: the token is decided here, not by the engine's sampler
    forced: Tensor
    # [num_rows] int64: the token, where forced
    recorded: Tensor
    # [num_rows] bool: the logits could be used
    valid: Tensor
    # [num_rows] float32
    entropy: Tensor
    max_probability: Tensor
    # [num_rows, width] float32 and int64: the concept token
    weights: Tensor
    ids: Tensor
    # [num_rows, hidden] float32: the engine's vectors, if any are fed
    base: Tensor | None = None
    # [num_rows, width] float32: for trainers
    scores: Tensor | None = None
    # [num_rows, len(records)] float32: for full traces
    records: Tensor | None = None

    @classmethod
    def nothing(cls, num_rows: int, width: int, device: torch.device) -> "Intent":
        """That of rows about which no step decided."""
        no = torch.zeros(num_rows, dtype=torch.bool, device=device)
        fact, token = no.float(), no.long()
        weights = fact[:, None].expand(-1, width)
        return cls(no, no, token, ~no, fact, fact, weights, weights.long())


class StepDecision(NamedTuple):
    """All that a step hands to its commit."""

    # Columns that hooks assigned
    written: dict[Field, Tensor]
    intent: Intent
    # The step's own rows, which have them
    rows: Rows | None = None


class PendingDecision:
    """The decision of the last step.

    Parameters
    ----------
    slots
        ``[num_rows]`` int64, of the step's rows.
    decision
        Makes it; of a compiled step only where somebody else than its own commit asks.
    compiled
        What the compiled commit is handed.
    """

    def __init__(
        self,
        slots: Tensor,
        decision: Callable[[], StepDecision],
        compiled: tuple[Any, list[Tensor]] | None = None,
    ) -> None:
        self.slots, self.decision, self.compiled = slots, decision, compiled
        # Slots whose request has come or gone since
        self.forgotten: set[int] = set()

    def is_of(self, slots: Tensor) -> bool:
        """Whether a commit takes the very rows that were stepped, in their order."""
        return slots is self.slots and not self.forgotten

    def take(self, table: SlotTable, slots: Tensor, live: Live) -> tuple[Rows, Intent]:
        """The rows of some slots with what the step wrote, and what it decided of them."""
        written, intent, rows = self.decision()
        if self.is_of(slots):
            if rows is None:
                rows = table.gather(slots, live)
                for column, values in written.items():
                    rows[column] = values
            return rows, intent
        rows = table.gather(slots, live)
        # [max_slots + 2]: the row of each slot, -1 where no step decided
        row = torch.full_like(table.ints[:, 0], -1)
        row.index_copy_(0, self.slots, torch.arange(len(self.slots), device=table.device))
        row[list(self.forgotten)] = -1
        row = row.index_select(0, slots)
        decided, row = row >= 0, row.clamp(min=0)
        for column, values in written.items():
            rows.choose(column, decided, values[row])
        parts: list[Any] = [part if part is None else part[row] for part in intent]
        intent = Intent(*parts)
        return rows, intent._replace(
            latent=intent.latent & decided,
            forced=intent.forced & decided,
            valid=intent.valid | ~decided,
        )
