"""What every decoder layer leaves at the rows that are sampled, kept for methods that read it.

Where a file of the operator's is for such a method, every layer has a seat before anything is
compiled or captured: a subclass behind which one op copies the rows of requests that ask into a
buffer at a fixed address. Elsewhere no layer has one, and nothing is paid. Knows no engine.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tokenlens.core import Core, Request
from tokenlens.core.layer_access import ModelShape
from tokenlens.errors import UnsupportedError
from tokenlens.serving.engine_vectors import HeadWatch
from tokenlens.serving.layer_shifts import Completed, as_returned, seated
from tokenlens.spec.needs import Need

Ints = NDArray[np.int64]


class TapCalls:
    """How often the op ran in this process: a stale compiled graph would leave it out."""

    count = 0


def keep_rows(
    places: Tensor, index: int, states: Tensor, residual: Tensor | None, kept: Tensor
) -> None:
    """Keep what a layer leaves at some tokens of a pass.

    Parameters
    ----------
    places
        ``[max_rows]`` int64: the token of each row of the batch, -1 for none.
    index
        Which of ``kept``.
    states, residual
        ``[num_tokens, hidden]``: what the layer leaves is their sum, or the first alone.
    kept
        ``[layers, max_rows, hidden]``, written in place.
    """
    TapCalls.count += 1
    if states.device.type == "cpu":
        # Reading the mask on the host is free here, and only here.
        rows = np.flatnonzero(places.numpy() >= 0)
        if not len(rows):
            return
        rows_tensor = torch.from_numpy(rows)
        at = places[rows_tensor]
        kept[index].index_copy_(0, rows_tensor, _left(at, states, residual).to(kept.dtype))
        return
    found = _left(places.clamp(min=0), states, residual).to(kept.dtype)
    kept[index].copy_(torch.where((places >= 0)[:, None], found, kept[index]))


def _left(at: Tensor, states: Tensor, residual: Tensor | None) -> Tensor:
    return states[at] if residual is None else states[at] + residual[at]


_LIBRARY = torch.library.Library("tokenlens_tap", "DEF")
_LIBRARY.define(
    "keep_rows(Tensor places, int index, Tensor states, Tensor? residual, Tensor(a!) kept) -> ()"
)
_LIBRARY.impl("keep_rows", keep_rows, "CompositeExplicitAutograd")
torch.library.register_fake("tokenlens_tap::keep_rows", lambda *_: None, lib=_LIBRARY)


def _keep(module: Any, index: int, states: Tensor, residual: Tensor | None) -> None:
    if states.dim() != 2:
        raise UnsupportedError(
            f"model: got a decoder layer that leaves {states.dim()} dimensions; allowed: two"
            " (tokens, width), where files are allowed whose method reads layers"
        )
    torch.ops.tokenlens_tap.keep_rows(
        module.tokenlens_tap_places, index, states, residual, module.tokenlens_tap_kept
    )


def keep_given(module: Any, args: tuple[Any, ...], named: Mapping[str, Any]) -> None:
    """Keep what the first layer is given."""
    if module.tokenlens_tap_index == 1:
        # Positions are integers, and there is no residual yet.
        for one in (*args, *named.values()):
            if isinstance(one, Tensor) and one.is_floating_point():
                _keep(module, 0, one, None)
                break


def keep_left(module: Any, states: Tensor, residual: Tensor | None) -> None:
    """Keep what a layer leaves."""
    _keep(module, module.tokenlens_tap_index, states, residual)


class LayerTap:
    """Seats that keep what layers leave, for the rows of a batch.

    The last layer has none: what is read of it has gone through the final norm, which is what goes
    into the head.

    Parameters
    ----------
    layers
        The decoder layers, first to last.
    head
        What watches the head.
    max_rows, max_slots
        The most rows of a batch, and requests at once.
    completed
        How the engine's layers leave their output.
    """

    def __init__(
        self,
        layers: list[nn.Module],
        shape: ModelShape,
        head: HeadWatch,
        dtype: torch.dtype,
        device: torch.device,
        *,
        max_rows: int,
        max_slots: int,
        completed: Completed = as_returned,
    ) -> None:
        if len(layers) < 2:
            raise UnsupportedError(
                "model: got one decoder layer; allowed: more, where they are read"
            )
        self._head = head
        # [layers, max_rows, hidden] and [max_rows] int64, at fixed addresses: never replaced
        self.kept = torch.zeros(
            shape.num_layers, max_rows, shape.hidden_size, dtype=dtype, device=device
        )
        self.places = torch.full((max_rows,), -1, dtype=torch.int64, device=device)
        # [max_slots + 1]: whether a slot's request reads; the last is that of rows without one
        self._reads = np.zeros(max_slots + 1, dtype=bool)
        self._written = self._num_rows = self._calls = 0
        for index, layer in enumerate(layers[:-1], start=1):
            module: Any = layer
            module.register_buffer("tokenlens_tap_places", self.places, persistent=False)
            module.register_buffer("tokenlens_tap_kept", self.kept, persistent=False)
            module.tokenlens_tap_index = index
            module.__class__ = seated(type(module), completed, keep_left, keep_given)

    def describe(self) -> str:
        """One line for the log."""
        mib = self.kept.numel() * self.kept.element_size() / 2**20
        return f"{mib:.1f} MiB of device memory for what {len(self.kept)} layers leave"

    def seat(self, slot: int, request: Request) -> None:
        """A request has a slot."""
        self._reads[slot] = Need.LAYER_STATES in request.needs

    def leave(self, slot: int) -> None:
        """A slot's request goes."""
        self._reads[slot] = False

    def begin(self, core: Core, num_rows: int) -> None:
        """A pass of so many rows begins; nothing is kept of it yet."""
        self._num_rows = num_rows
        if self._written:
            self.places[: self._written].fill_(-1)
            self._written = 0
        if Need.LAYER_STATES in core.live_needs:
            self._head.arm(num_rows)

    def write(self, upload: Any, slots: Ints, advance: NDArray[np.bool_], scheduled: Ints) -> None:
        """Say which tokens of the pass are read: the last of each row that decides and asks."""
        wanted = self._reads[slots] & advance
        if wanted.any():
            places = upload(np.where(wanted, np.cumsum(scheduled) - 1, -1))
            self.places[: len(slots)].copy_(places, non_blocking=True)
            self._written, self._calls = len(slots), TapCalls.count

    @property
    def was_missed(self) -> bool:
        """Whether the pass did not go through the seats, on a CPU."""
        return bool(self._written) and self._calls == TapCalls.count

    def states(self) -> Tensor:
        """``[num_rows, layers + 1, hidden]`` float32; rows that do not ask hold anything finite."""
        kept = self.kept[:, : self._num_rows].float()
        return torch.cat([kept, self._head.rows().float()[None]]).transpose(0, 1)
