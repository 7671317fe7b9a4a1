"""The slot table: every live request's state as columns of two tensors, and the row-to-slot map.

A slot keeps its index for as long as its request lives; rows are reordered at every step. The last
slot is nobody's: rows without a request point at it, and it stays as it was made.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from tokenlens.methods.base import Field, Rows, Value, columns_of


class SlotTable:
    """State of ``max_slots`` requests on one device.

    Parameters
    ----------
    max_slots
        Requests that can be live at once.
    fields
        The columns. A bool is kept as an int.
    """

    def __init__(self, max_slots: int, fields: tuple[Field, ...], device: torch.device) -> None:
        self.max_slots = max_slots
        self.fields = fields
        self.columns, num_ints, num_floats = columns_of(fields)
        # One row on the host: what an unused slot holds.
        self._ints = torch.zeros(num_ints, dtype=torch.int64)
        self._floats = torch.zeros(num_floats, dtype=torch.float32)
        for column in fields:
            table = self._floats if column.kind == "float" else self._ints
            table[self.columns[column]] = column.default
        # [max_slots + 1, columns]
        self.ints = self._ints.repeat(max_slots + 1, 1).to(device)
        self.floats = self._floats.repeat(max_slots + 1, 1).to(device)

    @property
    def null_slot(self) -> int:
        """The slot of rows that have no request."""
        return self.max_slots

    def write(self, slot: int, values: Mapping[Field, Value]) -> None:
        """Overwrite a whole slot: the given values, and the defaults of all other columns."""
        ints, floats = self._ints.clone(), self._floats.clone()
        for column, value in values.items():
            table = floats if column.kind == "float" else ints
            place = self.columns[column]
            if isinstance(value, (int, float)):
                table[place] = value
            else:
                stop = place.start + len(value)
                table[place.start : stop] = torch.tensor(value, dtype=table.dtype)
        self.ints[slot].copy_(ints, non_blocking=True)
        self.floats[slot].copy_(floats, non_blocking=True)

    def gather(self, slots: Tensor) -> Rows:
        """A copy of the given slots as rows. ``slots``: ``[num_rows]`` int64."""
        return Rows(
            self.columns, self.ints.index_select(0, slots), self.floats.index_select(0, slots)
        )

    def scatter(self, slots: Tensor, rows: Rows) -> None:
        """Write rows back into their slots."""
        self.ints.index_copy_(0, slots, rows.ints)
        self.floats.index_copy_(0, slots, rows.floats)
