"""States that a slot had before: to take tokens back, and to suspend a request.

Knows nothing of methods or tokens: it copies rows of the slot tables on the device.
"""

from collections.abc import Collection, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from tokenlens.core.columns import GENERATED, Field
from tokenlens.core.request import Request
from tokenlens.core.slots import SlotTable


class State(NamedTuple):
    """Copies of table rows."""

    ints: Tensor
    floats: Tensor
    wide: Mapping[Field, Tensor]


class SuspendedRequest(NamedTuple):
    """A request that has no slot for now, and everything that its slot held."""

    request: Request
    state: State
    snapshots: State | None


def copy_of(table: SlotTable, slot: int) -> State:
    """A copy of one slot's row."""
    return _copy(State(table.ints, table.floats, table.wide), slice(slot, slot + 1))


def restore(table: SlotTable, slot: int, state: State) -> None:
    """Write a copy back, into any slot."""
    _copy_into(State(table.ints, table.floats, table.wide), slice(slot, slot + 1), state)


def _copy(of: State, rows: slice) -> State:
    wide = {column: table[rows].clone() for column, table in of.wide.items()}
    return State(of.ints[rows].clone(), of.floats[rows].clone(), wide)


def _copy_into(to: State, rows: slice, state: State) -> None:
    to.ints[rows].copy_(state.ints)
    to.floats[rows].copy_(state.floats)
    for column, values in state.wide.items():
        to.wide[column][rows].copy_(values)


class Snapshots:
    """For each slot, the state before each of its newest tokens, in a ring by their number."""

    def __init__(self, table: SlotTable, steps: int) -> None:
        self.steps = steps
        self._generated = table.columns[GENERATED].start
        # [(max_slots + 2) * steps, columns]; what hooks cannot change needs no snapshot.
        self.state = State(
            table.ints.repeat_interleave(steps, dim=0),
            table.floats.repeat_interleave(steps, dim=0),
            {
                column: values.repeat_interleave(steps, dim=0)
                for column, values in table.wide.items()
                if not column.fixed
            },
        )

    def record(self, slots: Tensor, table: SlotTable, live: Collection[Field]) -> None:
        """Remember the slots' states before a token is committed.

        They are the table's: a row that was kept between step and commit already holds what the
        step intends, which a step that is made again would do twice.

        Parameters
        ----------
        slots
            ``[num_rows]``.
        live
            The wide fields that a live request may change.
        """
        ints = table.ints.index_select(0, slots)
        place = slots * self.steps + torch.remainder(ints[:, self._generated], self.steps)
        self.state.ints.index_copy_(0, place, ints)
        self.state.floats.index_copy_(0, place, table.floats.index_select(0, slots))
        for column in live:
            values = table.wide[column].index_select(0, slots)
            self.state.wide[column].index_copy_(0, place, values)

    def restore(self, slot: int, generated: int, table: SlotTable) -> None:
        """Put the state with so many generated tokens back."""
        place = slot * self.steps + generated % self.steps
        restore(table, slot, _copy(self.state, slice(place, place + 1)))

    def restore_rows(
        self, slots: Tensor, generated: Tensor, table: SlotTable, live: Collection[Field]
    ) -> None:
        """The same of many slots, on the device; those with no more tokens stay as they are.

        Parameters
        ----------
        slots, generated
            ``[num_rows]`` int64.
        live
            The wide fields that a live request may change.
        """
        now = table.ints.select(1, self._generated).index_select(0, slots)
        into = torch.where(now > generated, slots, table.scratch_slot)
        place = slots * self.steps + torch.remainder(generated, self.steps)
        table.ints.index_copy_(0, into, self.state.ints.index_select(0, place))
        table.floats.index_copy_(0, into, self.state.floats.index_select(0, place))
        for column in live:
            kept = self.state.wide[column].index_select(0, place)
            table.wide[column].index_copy_(0, into, kept)

    def copy_of(self, slot: int) -> State:
        """A copy of one slot's ring."""
        return _copy(self.state, slice(slot * self.steps, (slot + 1) * self.steps))

    def restore_ring(self, slot: int, state: State) -> None:
        """Write a ring back, into any slot."""
        _copy_into(self.state, slice(slot * self.steps, (slot + 1) * self.steps), state)
