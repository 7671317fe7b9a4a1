"""What rows intend between a step and its commit.

An engine that commits the rows of the last step, in their order, gets them back as they were. One
that commits in another order, or later, finds them kept by slot. Knows no methods.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tokenlens.core.columns import Field
from tokenlens.core.rows import Live, Rows
from tokenlens.core.slots import SlotTable


class Intent(NamedTuple):
    """What a step decided, per row, beside the rows' own columns."""

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


class PendingDecisions:
    """The intents of the slots that were stepped and not committed."""

    def __init__(self, table: SlotTable, width: int) -> None:
        self._table, self._width = table, width
        self._last: tuple[Tensor, Rows, Intent] | None = None
        # The same of a compiled step: made where somebody else than its commit wants it
        self._later: tuple[Tensor, Callable[[], tuple[Rows, Intent]], tuple[Any, ...]] | None = None
        # Made when it is first needed: many engines never do.
        self._made: _BySlot | None = None

    def put(self, slots: Tensor, rows: Rows, intent: Intent) -> None:
        """Keep the intents of a step."""
        self.keep()
        self._last = (slots, rows, intent)

    def put_later(
        self, slots: Tensor, make: Callable[[], tuple[Rows, Intent]], compiled: tuple[Any, ...]
    ) -> None:
        """Keep the intents of a compiled step, and what its commit is handed."""
        self.keep()
        self._later = (slots, make, compiled)

    def take_compiled(self, slots: Tensor) -> tuple[Any, ...] | None:
        """What a compiled commit is handed, if the last step was compiled and these slots'."""
        if self._later is None:
            return None
        known, make, compiled = self._later
        self._later = None
        if known is slots:
            if self._made is not None:
                self._made.kept.index_fill_(0, slots, False)
            return compiled
        self._last = (known, *make())
        return None

    def last(self) -> tuple[Rows, Intent]:
        """The intents of the last step, which stay."""
        assert self._last is not None
        return self._last[1:]

    def take(self, slots: Tensor, live: Live) -> tuple[Rows, Intent]:
        """What the slots intend, for the last time; slots that were not stepped intend nothing."""
        if self._last is not None and self._last[0] is slots:
            _, rows, intent = self._last
            self._last = None
            if self._made is not None:
                self._made.kept.index_fill_(0, slots, False)
            return rows, intent
        self.keep()
        by_slot, now = self._by_slot(), self._table
        kept, table = by_slot.kept.index_select(0, slots), by_slot.table

        def either(earlier: Tensor, state: Tensor) -> Tensor:
            there, here = earlier.index_select(0, slots), state.index_select(0, slots)
            return torch.where(kept if there.dim() == 1 else kept[:, None], there, here)

        def wide(column: Field) -> Tensor:
            if column not in by_slot.columns:
                return now.wide[column].index_select(0, slots)
            return either(table.wide[column], now.wide[column])

        rows = Rows(
            now.columns,
            either(table.ints, now.ints),
            lambda: either(table.floats, now.floats),
            wide,
            live,
            by_slot.columns,
        )
        intent = Intent(*(values.index_select(0, slots) for values in by_slot.intent))
        intent = intent._replace(
            latent=intent.latent & kept, forced=intent.forced & kept, valid=intent.valid | ~kept
        )
        by_slot.kept.index_fill_(0, slots, False)
        return rows, intent

    def keep(self) -> None:
        """Keep the last step's decisions by slot: they will not be committed as they came."""
        if self._later is not None:
            known, make, _ = self._later
            self._later, self._last = None, (known, *make())
        if self._last is None:
            return
        slots, rows, intent = self._last
        self._last = None
        by_slot = self._by_slot()
        rows.settle()
        by_slot.table.ints.index_copy_(0, slots, rows.ints)
        by_slot.table.floats.index_copy_(0, slots, rows.floats)
        # What earlier steps wrote and this one did not is kept, too: it may have changed since.
        by_slot.columns.update(rows.written)
        for column in [column for column in by_slot.columns if column not in rows.written]:
            rows[column] = rows[column]
        by_slot.table.scatter(slots, rows)
        for earlier, values in zip(by_slot.intent, intent, strict=True):
            earlier.index_copy_(0, slots, values)
        by_slot.kept.index_fill_(0, slots, True)

    def forget(self, slot: int) -> None:
        """Drop what a slot intends."""
        self.keep()
        if self._made is not None:
            self._made.kept[slot] = False

    def _by_slot(self) -> "_BySlot":
        if self._made is None:
            # Normal tensors, also where the step runs in inference mode.
            with torch.inference_mode(False):
                self._made = _BySlot(self._table, self._width)
        return self._made


class _BySlot:
    """Decisions by slot."""

    def __init__(self, table: SlotTable, width: int) -> None:
        slots, device = table.max_slots + 2, table.device

        def zeros(dtype: torch.dtype, *shape: int) -> Tensor:
            return torch.zeros(slots, *shape, dtype=dtype, device=device)

        self.table = SlotTable(table.max_slots, table.fields, device)
        # Those that a step has written since this was made
        self.columns: dict[Field, None] = {}
        # [max_slots + 2] bool: the slot has a decision
        self.kept = zeros(torch.bool)
        self.intent = Intent(
            zeros(torch.bool),
            zeros(torch.bool),
            zeros(torch.int64),
            zeros(torch.bool),
            zeros(torch.float32),
            zeros(torch.float32),
            zeros(torch.float32, width),
            zeros(torch.int64, width),
        )
