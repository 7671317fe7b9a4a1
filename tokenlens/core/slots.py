"""The slot table: every live request's state as columns of tensors, and the row-to-slot map.

A slot keeps its index for as long as its request lives; rows are reordered at every step. The last
two slots are no request's: rows without a request point at the null slot, which stays as it was
made, and what must not be kept is written to the scratch slot, which no step reads.
"""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from tokenlens.core.columns import Field, Value
from tokenlens.core.rows import IDLE, Live, Rows


class SlotTable:
    """State of ``max_slots`` requests on one device.

    Parameters
    ----------
    max_slots
        Requests that can be live at once.
    fields
        The columns. A bool is kept as an int.

    Attributes
    ----------
    ints, floats
        ``[max_slots + 2, columns]`` int64 and float32: the fields of one number, at ``columns``.
    wide
        ``[max_slots + 2, size]`` for each field of several.
    zeros
        ``[1]``, of each kind of number.
    """

    def __init__(self, max_slots: int, fields: tuple[Field, ...], device: torch.device) -> None:
        self.max_slots = max_slots
        self.fields = fields
        self.device = device
        self.columns: dict[Field, slice] = {}
        # One row on the host: what an unused slot holds.
        self._ints, self._floats = (
            torch.tensor(self._place([f for f in fields if is_float(f) == floats]), dtype=dtype)
            for floats, dtype in ((False, torch.int64), (True, torch.float32))
        )
        self.ints = self._ints.repeat(max_slots + 2, 1).to(device)
        self.floats = self._floats.repeat(max_slots + 2, 1).to(device)
        self.wide = {
            column: torch.full((max_slots + 2, column.size), column.default, dtype=dtype_of(column))
            .to(device)
            for column in fields
            if column.size > 1
        }  # fmt: skip

        self.zeros = {
            kind: torch.zeros(1, dtype=dtype, device=device)
            for kind, dtype in ((bool, torch.bool), (int, torch.int64), (float, torch.float32))
        }

    def _place(self, fields: Iterable[Field]) -> list[float | int]:
        """Give the fields of one number their columns; returns their defaults."""
        single = [column for column in fields if column.size == 1]
        self.columns.update((column, slice(i, i + 1)) for i, column in enumerate(single))
        return [column.default for column in single]

    @property
    def null_slot(self) -> int:
        """The slot of rows that have no request."""
        return self.max_slots

    @property
    def scratch_slot(self) -> int:
        """The slot for what is not kept."""
        return self.max_slots + 1

    def write(self, slot: int, values: Mapping[Field, Value]) -> None:
        """Overwrite a whole slot: the given values, and the defaults of all other columns."""
        ints, floats = self._ints.clone(), self._floats.clone()
        for column, value in values.items():
            if column.size == 1:
                assert isinstance(value, (int, float))
                (floats if is_float(column) else ints)[self.columns[column]] = value
        self.ints[slot].copy_(ints, non_blocking=True)
        self.floats[slot].copy_(floats, non_blocking=True)
        for column, table in self.wide.items():
            row = torch.full((column.size,), column.default, dtype=table.dtype)
            given = values.get(column, ())
            if isinstance(given, (int, float)):
                row.fill_(given)
            elif len(given):
                row[: len(given)] = torch.tensor(given, dtype=table.dtype)
            table[slot].copy_(row, non_blocking=True)

    def column(self, column: Field) -> Tensor:
        """A column of all slots, ``[max_slots + 2]`` or ``[max_slots + 2, size]``, not a copy."""
        if column.size > 1:
            return self.wide[column]
        table = self.floats if is_float(column) else self.ints
        return table[:, self.columns[column].start]

    def gather(self, slots: Tensor, live: Live = IDLE) -> Rows:
        """A copy of the given slots as rows. ``slots``: ``[num_rows]`` int64."""
        return Rows(self, slots, live)

    def scatter(self, slots: Tensor, rows: Rows) -> None:
        """Write the columns that were assigned back into their slots."""
        single: dict[bool, dict[int, Tensor]] = {False: {}, True: {}}
        for column, values in rows.written.items():
            if column.size == 1:
                single[is_float(column)][self.columns[column].start] = values
            else:
                table = self.wide[column]
                table.index_copy_(0, slots, values.to(table.dtype))
        for table, before, written in (
            (self.ints, rows.ints, single[False]),
            (self.floats, rows.floats, single[True]),
        ):
            if written:
                # Whole rows, put together of what was written and what lies between: one launch.
                pieces, begin = [], 0
                for place in sorted(written):
                    if begin < place:
                        pieces.append(before[:, begin:place])
                    pieces.append(written[place][:, None])
                    begin = place + 1
                table.index_copy_(0, slots, torch.cat([*pieces, before[:, begin:]], dim=1))


def fits(column: Field, value: Value) -> bool:
    """Whether a column can hold a value: as many numbers, each an int64 or a float32."""
    values = (value,) if isinstance(value, (int, float)) else value
    if len(values) > column.size:
        return False
    if not is_float(column):
        return all(isinstance(number, int) and -(1 << 63) <= number < 1 << 63 for number in values)
    most = torch.finfo(torch.float32).max
    # A NaN is not at most anything.
    return all(
        abs(number) <= most or (column.infinite and abs(number) == math.inf) for number in values
    )


def differs(column: Field, value: Value) -> bool:
    """Whether a value, or one of several, is not the column's default."""
    values = (value,) if isinstance(value, (int, float)) else value
    return any(number != column.default for number in values)


def is_float(column: Field) -> bool:
    """Whether a field is kept as float32; all others are int64."""
    return column.kind == "float"


def dtype_of(column: Field) -> torch.dtype:
    """What a field is kept as."""
    return torch.float32 if is_float(column) else torch.int64
