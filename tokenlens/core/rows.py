"""One step's copy of the state: a row for each row of the batch. Knows no slots and no engine."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tokenlens.core.columns import EOS_IDS, PHASE, Field, Phase
from tokenlens.core.layer_access import LayerAccess
from tokenlens.core.logit_edits import LogitEdits
from tokenlens.spec.needs import Need


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
    written: dict[Field, None]
    added: dict[Field, Tensor]
    records: dict[str, Tensor]
    intended: dict[str, Tensor]


class Rows:
    """One step's copy of the state, a row for each row of the batch.

    ``rows[FIELD]`` reads a column as ``[num_rows]`` (``[num_rows, size]`` where the field is
    wide); assigning to it changes the copy, never the slots.

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
        Columns that were assigned, in that order.
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

    def __init__(
        self,
        columns: Mapping[Field, slice],
        ints: Tensor,
        floats: Callable[[], Tensor],
        wide: Callable[[Field], Tensor],
        live: Live = IDLE,
        written: Iterable[Field] = (),
        fixed: dict[object, Tensor] | None = None,
    ) -> None:
        self.columns = columns
        self.needs = live.needs
        self._used = live.used
        self._files = live.files
        # [num_rows, columns] int64, as they were
        self.ints = ints
        self._read_floats, self._wide = floats, wide
        self._floats: Tensor | None = None
        # What was looked at: a step costs what its small calls cost, so nothing else is viewed.
        self._values: dict[Field, Tensor] = {}
        # The same of fixed columns and constants, which other steps have looked at too
        self._fixed: dict[object, Tensor] = {} if fixed is None else fixed
        self.written = dict.fromkeys(written)
        # What is still to be added to columns, all at once
        self._added: dict[Field, Tensor] = {}
        self.records: dict[str, Tensor] = {}
        # The phases that were compared, and the result
        self._thinking: tuple[Tensor, Tensor] | None = None

    def __getitem__(self, column: Field) -> Tensor:
        known = self._fixed if column.fixed else self._values
        values = known.get(column)
        if values is None:
            if column.fixed:
                # A normal tensor of its own: this step's rows are of the inference mode, and go.
                with torch.inference_mode(False):
                    values = self._read(column).clone()
            else:
                values = self._read(column)
            known[column] = values
        if column in self._added:
            self[column] = values = values + self._added.pop(column)
        return values

    def _read(self, column: Field) -> Tensor:
        if column.size > 1:
            values = self._wide(column)
        else:
            table = self.floats if column.kind == "float" else self.ints
            values = table.select(1, self.columns[column].start)
        return values != 0 if column.kind == "bool" else values

    @property
    def floats(self) -> Tensor:
        """``[num_rows, columns]`` float32, as they were; read when they are first looked at."""
        if self._floats is None:
            self._floats = self._read_floats()
        return self._floats

    def __setitem__(self, column: Field, values: Tensor) -> None:
        if column.fixed:
            raise TypeError(f"{column.name}: got an assignment; allowed: none, the field is fixed")
        self._values[column] = values
        self.written[column] = None

    def constant(self, value: bool | int | float) -> Tensor:
        """``[num_rows]`` bool, int64 or float32 of one value; never changed in place."""
        # True is 1 to a dict.
        key = type(value), value
        values = self._fixed.get(key)
        if values is None:
            dtype = {bool: torch.bool, int: torch.int64, float: torch.float32}[type(value)]
            with torch.inference_mode(False):
                values = torch.full(
                    self.ints.shape[:1], value, dtype=dtype, device=self.ints.device
                )
            self._fixed[key] = values
        return values

    @property
    def thinking(self) -> Tensor:
        """Rows that think, ``[num_rows]`` bool; compared once for all hooks."""
        phase = self[PHASE]
        if self._thinking is None or self._thinking[0] is not phase:
            self._thinking = (phase, phase == int(Phase.THINKING))
        return self._thinking[1]

    def files(self, column: Field) -> list[int]:
        """Numbers of the files that live requests read by a column, known on the host."""
        return sorted(number for field, number in self._files if field is column)

    def choose(self, column: Field, where: Tensor, values: Tensor | float | int | bool) -> None:
        """Set a column where the mask holds."""
        self[column] = torch.where(
            where if column.size == 1 else where[:, None], values, self[column]
        )

    def add(self, column: Field, amount: Tensor) -> None:
        """Add to a column, e.g. a mask to a counter: now, or with others when it is looked at.

        Parameters
        ----------
        amount
            ``[num_rows]`` bool or int64.
        """
        if column.fixed:
            raise TypeError(f"{column.name}: got an addition; allowed: none, the field is fixed")
        if column in self.written or column in self._added:
            self[column] = self[column] + amount
        else:
            self._added[column] = amount

    def take_added(self) -> dict[Field, Tensor]:
        """What is still to be added, by column; it is the caller's to add from now on."""
        added, self._added = self._added, {}
        return added

    def mark(self) -> RowState:
        """What the rows hold now, to go back to."""
        kept = vars(self)
        return RowState(
            dict(self._values),
            dict(self.written),
            dict(self._added),
            dict(self.records),
            {name: kept[name] for name in ("latent", "forced") if name in kept},
        )

    def restore(self, mark: RowState) -> None:
        """Go back to a mark. What was changed in place stays changed."""
        self._values, self.written = dict(mark.values), dict(mark.written)
        self._added, self.records = dict(mark.added), dict(mark.records)
        self._thinking = None
        vars(self).update(mark.intended)

    def pretend(self, column: Field, values: Tensor) -> Tensor:
        """Have a fixed column read as something else; returns what it was."""
        before = self[column]
        self._fixed[column] = values
        return before

    def changed(self, mark: RowState) -> Iterator[tuple[Field, Tensor, Tensor]]:
        """Columns that were assigned or added to since a mark, with their values now and then."""
        added = [c for c, amount in self._added.items() if amount is not mark.added.get(c)]
        for column in added:
            self[column]
        for column in self.written:
            now, then = self._values.get(column), mark.values.get(column)
            if now is None or now is then:
                continue
            then = self._read(column) if then is None else then
            yield column, now, then + mark.added[column] if column in mark.added else then

    def settle(self) -> None:
        """Add what is still to be added."""
        for column in list(self._added):
            self[column]

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
