"""The slot table: every live request's state as columns of two tensors, and the row-to-slot map.

A slot keeps its index for as long as its request lives; rows are reordered at every step. The last
slot is nobody's: rows without a request point at it, and it stays as it was made.
"""

from collections.abc import Collection, Mapping

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
        self.columns, self._scalars, widths = columns_of(fields)
        # One row on the host: what an unused slot holds.
        self._ints = torch.zeros(widths["int"], dtype=torch.int64)
        self._floats = torch.zeros(widths["float"], dtype=torch.float32)
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

    def column(self, column: Field) -> Tensor:
        """A single-number column of all slots, ``[max_slots + 1]``, not a copy."""
        table = self.floats if column.kind == "float" else self.ints
        return table[:, self.columns[column].start]

    def gather(self, slots: Tensor, traits: Collection[str] = ()) -> Rows:
        """A copy of the given slots as rows. ``slots``: ``[num_rows]`` int64."""
        return Rows(
            self.columns,
            self._scalars,
            self.ints.index_select(0, slots),
            self.floats.index_select(0, slots),
            traits,
        )

    def scatter(self, slots: Tensor, rows: Rows) -> None:
        """Write rows back into their slots: all single numbers, and wide fields if assigned."""
        for kind, table in (("int", self.ints), ("float", self.floats)):
            values = rows.table(kind)
            table[:, : values.shape[1]].index_copy_(0, slots, values)
        for column, values in rows.written_wide():
            self.ints[:, self.columns[column]].index_copy_(0, slots, values)
