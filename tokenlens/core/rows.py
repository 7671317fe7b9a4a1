"""One step's copy of the state: a row for each row of the batch. Knows no engine."""

from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from tokenlens.core.columns import EOS_IDS, PHASE, Field, Phase
from tokenlens.core.layer_access import LayerAccess
from tokenlens.core.logit_edits import LogitEdits
from tokenlens.spec.needs import Need

if TYPE_CHECKING:
    from tokenlens.core.slots import SlotTable


class Live(NamedTuple):
    """What the host knows of the live requests; what a step leaves out follows from it."""

    needs: Need
    # Columns in which a live request came with another value than the default
    used: Collection[Field]
    # The operator's files that live requests read, each with the column that holds its number
    files: Collection[tuple[Field, int]] = ()


IDLE = Live(Need.NOTHING, frozenset())


class RowState(NamedTuple):
    """What rows held when a hook began; columns that nobody had looked at are not in it."""

    values: dict[Field, Tensor]
    written: dict[Field, Tensor]
    records: dict[str, Tensor]
    intended: dict[str, Tensor]


class Rows:
    """One step's copy of the state, a row for each row of the batch.

    ``rows[FIELD]`` reads a column as ``[num_rows]`` (``[num_rows, size]`` where the field is
    wide); assigning to it changes the copy, never the slots.

    Parameters
    ----------
    table
        The state of all slots, with which wide fields are looked up: before it changes.
    slots
        ``[num_rows]`` int64.

    Attributes
    ----------
    needs
        What the live requests need of the step, known on the host: a hook skips what no row of the
        batch can need.
    vocab_size
        Columns of the logits that can be tokens; the rest is padding.
    holes
        int64 columns below ``vocab_size`` that are no token, ``None`` if there are none.
    marker_tables
        See :mod:`tokenlens.core.marker_columns`; given where a request has the need LONG_MARKERS.
    written
        What was assigned, by column.
    edits
        Who writes logits asks it for the tensor, in ``step``'s hooks.
    layers
        The engine's way to its decoder layers, in ``step``'s hooks; ``None``: it lends none.
    records
        What was given to :meth:`record`, by name.
    latent, forced
        ``[num_rows]`` bool, in ``commit``'s hooks: what the step intended. A hook may take a latent
        row back.
    """

    vocab_size = 0
    holes: Tensor | None = None
    marker_tables: tuple[Tensor, Tensor]
    latent: Tensor
    forced: Tensor
    edits: LogitEdits
    layers: LayerAccess | None = None

    def __init__(self, table: "SlotTable", slots: Tensor, live: Live = IDLE) -> None:
        self._table, self._slots = table, slots
        self.needs, self._used, self._files = live
        # [num_rows, columns] int64 and float32, as they were
        self.ints = table.ints.index_select(0, slots)
        self.floats = table.floats.index_select(0, slots)
        # All bools at once: one launch, however many are looked at
        self._bools = self.ints != 0
        self._read: dict[Field, Tensor] = {}
        self._thinking: Tensor | None = None
        self.written: dict[Field, Tensor] = {}
        self.records: dict[str, Tensor] = {}

    def __getitem__(self, column: Field) -> Tensor:
        values = self._read.get(column)
        if values is None:
            values = self._read[column] = self._look_up(column)
        return values

    def _look_up(self, column: Field) -> Tensor:
        if column.size > 1:
            return self._table.wide[column].index_select(0, self._slots)
        tables = {"int": self.ints, "float": self.floats, "bool": self._bools}
        return tables[column.kind].select(1, self._table.columns[column].start)

    def __setitem__(self, column: Field, values: Tensor) -> None:
        if column.fixed:
            raise TypeError(f"{column.name}: got an assignment; allowed: none, the field is fixed")
        self._read[column] = self.written[column] = values
        if column is PHASE:
            self._thinking = None

    def constant(self, value: bool | int | float) -> Tensor:
        """``[num_rows]`` bool, int64 or float32 of one value; never changed in place."""
        # A view of one number: no launch where it is nothing.
        one = self._table.zeros[type(value)]
        return (one + value if value else one).expand(self.ints.shape[0])

    @property
    def thinking(self) -> Tensor:
        """Rows that think, ``[num_rows]`` bool; one launch for all hooks."""
        if self._thinking is None:
            self._thinking = self[PHASE] == int(Phase.THINKING)
        return self._thinking

    def files(self, column: Field) -> list[int]:
        """Numbers of the files that live requests read by a column, known on the host."""
        return sorted(number for field, number in self._files if field is column)

    def choose(self, column: Field, where: Tensor, values: Tensor | float | int | bool) -> None:
        """Set a column where the mask holds."""
        self[column] = torch.where(
            where if column.size == 1 else where[:, None], values, self[column]
        )

    def add(self, column: Field, amount: Tensor) -> None:
        """Add ``[num_rows]`` bool or int64 to a column, e.g. a mask to a counter."""
        self[column] = self[column] + amount

    def mark(self) -> RowState:
        """What the rows hold now, to go back to."""
        kept = vars(self)
        names: tuple[str, ...] = ("latent", "forced")
        return RowState(
            dict(self._read),
            dict(self.written),
            dict(self.records),
            {name: kept[name] for name in names if name in kept},
        )

    def restore(self, mark: RowState) -> None:
        """Go back to a mark. What was changed in place stays changed."""
        self._read, self.written = dict(mark.values), dict(mark.written)
        self.records, self._thinking = dict(mark.records), None
        vars(self).update(mark.intended)

    def pretend(self, column: Field, values: Tensor) -> None:
        """Have a fixed column read as something else."""
        self._read[column] = values

    def changed(self, mark: RowState) -> Iterator[tuple[Field, Tensor, Tensor]]:
        """Columns that were assigned since a mark, with their values now and then."""
        for column, now in self.written.items():
            then = mark.values.get(column)
            if now is not then:
                yield column, now, self._look_up(column) if then is None else then

    def uses(self, column: Field) -> bool:
        """Whether a live request was admitted with another value than the column's default.

        Known on the host: a hook may skip what only other values switch on.
        """
        return column in self._used

    def stacked_records(self, names: Sequence[str]) -> Tensor:
        """What was recorded, ``[num_rows, len(names)]`` float32; 0 for nothing."""
        nothing = self.constant(0.0)
        return torch.stack([self.records.get(name, nothing).float() for name in names], dim=1)

    @property
    def traced(self) -> bool:
        """Whether a live request has a full trace, which keeps what is recorded."""
        return Need.FULL_TRACE in self.needs

    def record(self, name: str, amounts: Tensor) -> None:
        """Record for full traces what a method does to the logits or the mode, in step's hooks.

        Parameters
        ----------
        name
            One of the method's :attr:`~tokenlens.core.method.Method.records`.
        amounts
            ``[num_rows]``; 0 for nothing.
        """
        if Need.FULL_TRACE in self.needs:
            self.records[name] = amounts


def is_eos(rows: Rows, ids: Tensor) -> Tensor:
    """Whether each row's token is one of its end-of-text tokens."""
    return (rows[EOS_IDS] == ids[:, None]).any(dim=1)
