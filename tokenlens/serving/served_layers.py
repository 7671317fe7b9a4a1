"""What an engine lends the core of its layers: a shift behind them, and the head's input.

A shift is not asked for (:mod:`tokenlens.serving.layer_shifts`); what all layers leave is kept by
:mod:`tokenlens.serving.layer_tap`. The last hidden state behind a
prompt is what goes into the head where a request decides its first token, so that no layer has to
be read for it; in which step that is, the host knows. Knows no engine.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tokenlens.core import Core, Request
from tokenlens.serving.engine_vectors import HeadWatch
from tokenlens.serving.layer_shifts import Ints, LayerShifts
from tokenlens.serving.layer_tap import LayerTap
from tokenlens.spec.needs import Need


class ServedLayers:
    """See :class:`tokenlens.core.layer_access.LayerAccess`.

    Parameters
    ----------
    shifts
        ``None`` where no layer has a seat.
    head
        ``None`` where the head cannot be watched.
    tap
        ``None`` where no layer is read.
    """

    def __init__(
        self, shifts: LayerShifts | None, head: HeadWatch | None, tap: LayerTap | None = None
    ) -> None:
        self.shifts, self._head, self.tap = shifts, head, tap
        self.hosts = Need.NOTHING if shifts is None else Need.LAYER_SHIFT
        if head is not None:
            self.hosts |= Need.PROMPT_STATE
        if tap is not None:
            self.hosts |= Need.LAYER_STATES
        self._first = False

    def begin(self, core: Core, num_rows: int) -> None:
        """A pass of so many rows begins."""
        self._first = False
        if self._head is not None and Need.PROMPT_STATE in core.live_needs:
            self._head.arm(num_rows)
        if self.tap is not None:
            self.tap.begin(core, num_rows)

    def seat(self, slot: int, request: Request) -> None:
        """A request has a slot."""
        if self.tap is not None:
            self.tap.seat(slot, request)
        if self.shifts is not None:
            self.shifts.seat(slot, request)

    def leave(self, slot: int) -> None:
        """A slot's request goes."""
        if self.tap is not None:
            self.tap.leave(slot)
        if self.shifts is not None:
            self.shifts.leave(slot)

    def read(
        self, upload: Any, slots: Ints, advance: NDArray[np.bool_], number: Ints, scheduled: Ints
    ) -> None:
        """Say what is read of the pass.

        Parameters
        ----------
        slots, advance, number, scheduled
            ``[num_rows]``: whether each row decides a token, which of its request's, and the
            tokens that it has in the pass.
        """
        self._first = bool((advance & (number == 0)).any())
        if self.tap is not None:
            self.tap.write(upload, slots, advance, scheduled)

    @property
    def was_missed(self) -> bool:
        """Whether the pass did not go through seats that read, on a CPU."""
        return self.tap is not None and self.tap.was_missed

    def states(self) -> Tensor:
        """``[num_rows, layers + 1, hidden]`` float32, behind this step's logits."""
        assert self.tap is not None
        return self.tap.states()

    def prompt_state(self) -> Tensor | None:
        """``[num_rows, hidden]`` float32 where some row decides its first token."""
        if not self._first or self._head is None:
            return None
        return self._head.rows().float()
