"""A core as it is traced: over other tensors, of any number of slots."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tokenlens.core.columns import Field
from tokenlens.core.rows import IDLE, Live, Rows
from tokenlens.core.slots import SlotTable, dtype_of
from tokenlens.core.swap import replaced


class _Rows(Rows):
    """Rows that note which columns hooks ask about."""

    asked: tuple[set[Field], set[Field]]
    """Columns of which a hook has asked whether a live request uses them: no, yes."""

    def uses(self, column: Field) -> bool:
        used = super().uses(column)
        self.asked[used].add(column)
        return used


class _Table(SlotTable):
    """A slot table of any size."""

    asked: tuple[set[Field], set[Field]]

    @property
    def scratch_slot(self) -> Any:
        last = self.ints.shape[0] - 1
        return torch.full((), last, dtype=torch.int64, device=self.ints.device)

    def gather(self, slots: Tensor, live: Live = IDLE) -> Rows:
        rows = super().gather(slots, live)
        rows.__class__ = _Rows
        rows.asked = self.asked  # type: ignore[attr-defined]
        return rows

    def scatter(self, slots: Tensor, rows: Rows) -> None:
        for table, before in ((self.ints, rows.ints), (self.floats, rows.floats)):
            # Fuses with what makes the columns; pieces of whole rows do not.
            columns = [f for f in rows.written if f.size == 1 and dtype_of(f) == table.dtype]
            place = torch.arange(table.shape[1], device=table.device)
            values = before
            for column in columns:
                new = rows[column].to(table.dtype)[:, None]
                values = torch.where(place == self.columns[column].start, new, values)
            if columns:
                table.index_copy_(0, slots, values)
        for column in rows.written:
            if column.size > 1:
                wide = self.wide[column]
                wide.index_copy_(0, slots, rows[column].to(wide.dtype))


class GivenVectors:
    """An engine's vectors that are given, by the names of `engine_vectors.before_step`."""

    def __init__(self, engine_vectors: Any, given: Mapping[str, Tensor]) -> None:
        self.hosts, self.hidden_size, self._given = (
            engine_vectors.hosts,
            engine_vectors.hidden_size,
            given,
        )

    def dense(self, logits: Tensor, active: Tensor, inverse_temperature: Tensor) -> Tensor:
        raise RuntimeError("a product with the whole table is made in the middle of a step")

    def hidden(self) -> Tensor:
        return self._given["hidden"]

    def alignment(self, *, single: bool = False) -> tuple[Tensor, Tensor]:
        return self._given["single" if single else "matrix"], self._given["norm"]


def traced_core(
    core: Any,
    new: dict[int, Tensor],
    asked: tuple[set[Field], set[Field]],
    given: Mapping[str, Tensor] | None = None,
) -> Any:
    """A copy of the core over other tensors, which is traced."""
    made = replaced(core, new)
    made.table.__class__ = _Table
    made.table.asked = asked
    # Layers are read in the middle of a step, which is eager then.
    made.forms = made.contained = made._layers = None
    if given:
        made._engine_vectors = GivenVectors(core._engine_vectors, given)
    return made
