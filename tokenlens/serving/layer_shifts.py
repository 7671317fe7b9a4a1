"""Vectors that are added behind decoder layers, inside an engine's captured forward pass.

A layer that a file of the operator's names is given a seat before anything is compiled or captured:
a subclass whose output goes through one op. The op is opaque to ``torch.compile`` and reads only
tensors at fixed addresses; rows that nobody shifts keep their bits. Where no file names a layer, no
layer has a seat, and nothing is paid. How much was added at a position is kept beside its concept
token (:mod:`tokenlens.serving.store`), so that a request that lost its KV cache is shifted again as
it was. Knows no engine.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tokenlens.core import Core, Request
from tokenlens.core.layer_access import SHIFT, SHIFT_FILE, SHIFT_LAYER
from tokenlens.errors import SpecError, UnsupportedError
from tokenlens.methods import files
from tokenlens.methods.east.step import VECTOR
from tokenlens.serving.embedding import NAMES
from tokenlens.serving.layer_files import check_seats, seated_layers
from tokenlens.serving.settings import Settings
from tokenlens.spec.needs import Need

Ints = NDArray[np.int64]

Completed = Callable[[Any, tuple[Any, ...], Mapping[str, Any]], "tuple[Any, Tensor, Tensor | None]"]
"""Given what a layer returned, and its arguments: what it is to return, the hidden state in there
that may be added to, in place, and what that is added to next; the last only bounds the sum."""


def as_returned(
    output: Any, args: tuple[Any, ...], named: Mapping[str, Any]
) -> tuple[Any, Tensor, Tensor | None]:
    """The first of what a layer returns, which the next layer's norm adds to the residual.

    Whatever the second is (the residual, or what was added already), the hidden state is the right
    one, and on every rank it is whole behind the layer.
    """
    if not isinstance(output, tuple):
        return output, output, None
    second = output[1] if len(output) > 1 else None
    return output, output[0], second if isinstance(second, Tensor) else None


class ShiftCalls:
    """How often the op ran in this process: a stale compiled graph would leave it out."""

    count = 0


def shift_rows(
    places: Tensor,
    amounts: Tensor,
    vectors: Tensor,
    layer: int,
    states: Tensor,
    residual: Tensor | None,
) -> None:
    """Add what requests want behind one layer, in place.

    Parameters
    ----------
    places
        ``[3, max_tokens]`` int64: the entry of a token's history, -1 for none; the row of its
        request's vector; the layer behind which it is added. Whole, because a graph must not know
        whether a pass fills it.
    amounts
        ``[entries]`` float32: how much of the vector.
    vectors
        ``[files, hidden]`` float32.
    layer
        This one, from 1.
    states, residual
        ``[num_tokens, hidden]``: what the layer leaves is their sum, or the first alone. A row of
        which the model's dtype cannot hold what comes out stays as it was.
    """
    ShiftCalls.count += 1
    places = places[:, : states.shape[0]]
    if states.device.type == "cpu":
        # Reading the mask on the host is free here, and only here.
        entry, row, own = places.numpy()
        here = np.flatnonzero((entry >= 0) & (own == layer))
        if not len(here):
            return
        index = torch.from_numpy(here)
        amount = amounts[torch.from_numpy(entry[here])]
        states[index] = _shifted(
            amount,
            vectors[torch.from_numpy(row[here])],
            states[index],
            None if residual is None else residual[index],
            amount != 0,
        )
        return
    entry, row, own = places
    amount = amounts[entry.clamp(min=0)]
    active = (entry >= 0) & (own == layer) & (amount != 0)
    states.copy_(_shifted(amount, vectors[row], states, residual, active))


def _shifted(
    amount: Tensor, vectors: Tensor, states: Tensor, residual: Tensor | None, active: Tensor
) -> Tensor:
    moved = (states.float() + amount[:, None] * vectors).to(states.dtype)
    left = moved if residual is None else (moved.float() + residual.float()).to(states.dtype)
    sound = active & left.isfinite().all(dim=1) & moved.isfinite().all(dim=1)
    return torch.where(sound[:, None], moved, states)


_LIBRARY = torch.library.Library("tokenlens_layers", "DEF")
_LIBRARY.define(
    "shift_rows(Tensor places, Tensor amounts, Tensor vectors, int layer, Tensor(a!) states,"
    " Tensor? residual) -> ()"
)
_LIBRARY.impl("shift_rows", shift_rows, "CompositeExplicitAutograd")
torch.library.register_fake("tokenlens_layers::shift_rows", lambda *_: None, lib=_LIBRARY)


def shift(module: Any, states: Tensor, residual: Tensor | None) -> None:
    """Add what requests want to what a seated layer leaves, in place."""
    if states.dim() != 2:
        raise UnsupportedError(
            f"model: got a decoder layer that leaves {states.dim()} dimensions; allowed: two"
            " (tokens, width), where files with vectors are allowed"
        )
    if residual is not None and residual.shape != states.shape:
        residual = None
    torch.ops.tokenlens_layers.shift_rows(
        module.tokenlens_shift_places,
        module.tokenlens_shift_amounts,
        module.tokenlens_shift_vectors,
        module.tokenlens_layer,
        states,
        residual,
    )


def _pass_by(module: Any, args: tuple[Any, ...], named: Mapping[str, Any]) -> None:
    """Nothing is done with what a layer is given."""


def seated(
    base: type[Any],
    completed: Completed = as_returned,
    left: Callable[[Any, Tensor, Tensor | None], None] = shift,
    given: Callable[[Any, tuple[Any, ...], Mapping[str, Any]], None] = _pass_by,
) -> type[nn.Module]:
    """A subclass of a layer's own class whose output goes through an op.

    Parameters
    ----------
    left, given
        Take the layer, and what it leaves (as ``completed`` says) or what it is given.
    """

    class _Seated(base):  # type: ignore[misc]  # the base is the engine's
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            given(self, args, kwargs)
            output, states, residual = completed(super().forward(*args, **kwargs), args, kwargs)
            left(self, states, residual)
            return output

    _Seated.__name__, _Seated.__qualname__ = base.__name__, base.__qualname__
    _Seated.__module__ = base.__module__
    return _Seated


def decoder_layers(
    model: nn.Module, num_layers: int, table: type[nn.Module] | tuple[type[nn.Module], ...]
) -> list[nn.Module]:
    """The decoder layers of a model, first to last: the list beside its input embedding.

    Parameters
    ----------
    table
        The engine's classes of input embeddings; those of images have others.

    Raises
    ------
    UnsupportedError
        A model that has no such list.
    """
    owners = {
        name.rpartition(".")[0]
        for name, one in ((n.removesuffix(".base_layer"), one) for n, one in model.named_modules())
        if NAMES.search(name) and isinstance(one, table)
    }
    lists = {
        name: one
        for name, one in model.named_modules()
        if isinstance(one, nn.ModuleList)
        and len(one) == num_layers
        and name.rpartition(".")[0] in owners
    }
    if len(lists) != 1:
        raise UnsupportedError(
            f"model: got {type(model).__name__}, with {len(lists)} lists of {num_layers} layers"
            " beside its input embedding; allowed: one, where files with vectors are allowed."
            " Leave them out of the setting files, and requests with east are refused."
        )
    return list(next(iter(lists.values())))


class LayerShifts:
    """Seats at decoder layers, what is added there, and what each row of a pass is to be added.

    Parameters
    ----------
    layers
        The model's decoder layers, first to last.
    settings
        Whose files name the layers; they have been read and fit
        (:func:`tokenlens.serving.layer_files.check_files`).
    entries
        Of the history.
    max_slots, max_tokens
        Requests at once, and the most tokens of one forward pass.
    check
        Refuses layers that are to have seats, where it is not known what they leave.
    completed
        How the engine's layers leave their output.
    """

    def __init__(
        self,
        layers: list[nn.Module],
        settings: Settings,
        dtype: torch.dtype,
        device: torch.device,
        *,
        entries: int,
        max_slots: int,
        max_tokens: int,
        check: Callable[[Sequence[nn.Module]], None] = lambda layers: None,
        completed: Completed = as_returned,
    ) -> None:
        self._settings, self._dtype = settings, dtype
        seats = seated_layers(settings)
        vectors = [files.find("files", name) for name in seats]
        # By number of a file: the row of its vector
        self._row_of = {file.number: row for row, file in enumerate(vectors)}
        self.vectors = torch.stack([file.tensors[VECTOR] for file in vectors]).to(device)
        # [entries] float32, written by commits
        self.amounts = torch.zeros(entries, device=device)
        # [3, max_tokens] int64, read by captured graphs: never replaced
        self.places = torch.zeros(3, max_tokens, dtype=torch.int64, device=device)
        self.places[0] = -1
        # [max_slots + 1]: what a slot's request wants; the last is that of rows without a request
        self.shifts = np.zeros(max_slots + 1, dtype=bool)
        self._rows: Ints = np.zeros(max_slots + 1, dtype=np.int64)
        self._layers: Ints = np.zeros(max_slots + 1, dtype=np.int64)
        self._written = 0
        self.layers = tuple(sorted(set(seats.values())))
        check([layers[layer - 1] for layer in self.layers])
        for layer in self.layers:
            module: Any = layers[layer - 1]
            buffers = {"places": self.places, "amounts": self.amounts, "vectors": self.vectors}
            for name, tensor in buffers.items():
                module.register_buffer(f"tokenlens_shift_{name}", tensor, persistent=False)
            module.tokenlens_layer = layer
            module.__class__ = seated(type(module), completed)

    def describe(self) -> str:
        """One line for the log."""
        return f"{len(self._row_of)} vectors, behind layers {', '.join(map(str, self.layers))}"

    # Requests come and go.

    def check(self, request: Request) -> None:
        """Refuse what has no seat. See :func:`tokenlens.serving.layer_files.check_seats`."""
        check_seats(request, self._settings, self._dtype)
        if Need.LAYER_SHIFT in request.needs and request.columns[SHIFT_FILE] not in self._row_of:
            allowed = "a file as it was when this server started"
            raise SpecError.of("east.file", request.columns[SHIFT_FILE], allowed)

    def seat(self, slot: int, request: Request) -> None:
        """A request has a slot."""
        if Need.LAYER_SHIFT in request.needs:
            columns: Mapping[Any, Any] = request.columns
            self._rows[slot] = self._row_of[columns[SHIFT_FILE]]
            self._layers[slot] = columns[SHIFT_LAYER]
            self.shifts[slot] = True

    def leave(self, slot: int) -> None:
        """A slot's request goes."""
        self.shifts[slot] = False

    # Steps.

    def write(self, upload: Any, entries: Ints, slots: Ints) -> bool:
        """Say where in the history each token of a pass is, and whose it is; both ``[num_tokens]``.

        Tokens with entry -1, and those of requests that shift nothing, stay as they are.

        Returns
        -------
        bool
            Some token may be shifted.
        """
        number = len(entries)
        here = np.where(self.shifts[slots], entries, -1)
        if (here < 0).all():
            self.clean()
            return False
        places = upload(np.stack([here, self._rows[slots], self._layers[slots]]))
        self.places[:, :number].copy_(places, non_blocking=True)
        if self._written > number:
            self.places[0, number : self._written].fill_(-1)
        self._written = number
        return True

    def clean(self) -> None:
        """No token of the next pass is shifted."""
        if self._written:
            self.places[0, : self._written].fill_(-1)
            self._written = 0

    def keep(self, core: Core, entries: Tensor, slots: Tensor) -> None:
        """Keep how much is added where the step's tokens are read, ``[num_rows]`` each."""
        amount = core.table.column(SHIFT)
        self.amounts.index_copy_(0, entries, amount.index_select(0, slots))
