"""States that a slot had before: to take tokens back, and to lend a slot to somebody else.

Knows nothing of methods or tokens: it copies rows of the slot tables on the device.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from tokenlens.core.request import Request
from tokenlens.core.slots import SlotTable
from tokenlens.methods.base import GENERATED


class State(NamedTuple):
    """Copies of table rows."""

    ints: Tensor
    floats: Tensor


class Parked(NamedTuple):
    """A request that has no slot for now, and everything that its slot held."""

    request: Request
    state: State
    pending: State
    past: State | None


def copy_of(table: SlotTable, slot: int) -> State:
    """A copy of one slot's row."""
    return State(table.ints[slot].clone(), table.floats[slot].clone())


def paste(table: SlotTable, slot: int, state: State) -> None:
    """Write a copy back, into any slot."""
    table.ints[slot].copy_(state.ints)
    table.floats[slot].copy_(state.floats)


class Past:
    """For each slot, the state before each of its newest tokens, in a ring by their number."""

    def __init__(self, table: SlotTable, steps: int) -> None:
        self.steps = steps
        self._generated = table.columns[GENERATED].start
        # [(max_slots + 1) * steps, columns]
        self.ints = table.ints.repeat_interleave(steps, dim=0)
        self.floats = table.floats.repeat_interleave(steps, dim=0)

    def record(self, slots: Tensor, table: SlotTable) -> None:
        """Remember the slots' states before a token is committed. ``slots``: ``[num_rows]``."""
        ints = table.ints.index_select(0, slots)
        place = slots * self.steps + torch.remainder(ints[:, self._generated], self.steps)
        self.ints.index_copy_(0, place, ints)
        self.floats.index_copy_(0, place, table.floats.index_select(0, slots))

    def restore(self, slot: int, generated: int, *tables: SlotTable) -> None:
        """Put the state with so many generated tokens back."""
        place = slot * self.steps + generated % self.steps
        for table in tables:
            paste(table, slot, State(self.ints[place], self.floats[place]))

    def copy_of(self, slot: int) -> State:
        """A copy of one slot's ring."""
        ring = slice(slot * self.steps, (slot + 1) * self.steps)
        return State(self.ints[ring].clone(), self.floats[ring].clone())

    def paste(self, slot: int, state: State) -> None:
        """Write a ring back, into any slot."""
        ring = slice(slot * self.steps, (slot + 1) * self.steps)
        self.ints[ring].copy_(state.ints)
        self.floats[ring].copy_(state.floats)
