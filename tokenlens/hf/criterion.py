"""Our stopping criterion, and what it knows in common with the list of processors."""

import threading
import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import StoppingCriteria

from tokenlens.errors import ProtocolError
from tokenlens.hf.refusals import PAGED, REPLACED, stopped_rows
from tokenlens.hf.run import Run

if TYPE_CHECKING:
    from tokenlens.core.recorder import Recorder


class Seen:
    """What a list of processors and a criterion share: runs by thread, the last recorder."""

    def __init__(self) -> None:
        self.recorder: Recorder | None = None
        # Several where a call is made inside another one with the same arguments
        self._live: dict[int, list[weakref.ref[Run]]] = {}

    def add(self, run: Run) -> None:
        """A run of the calling thread's."""
        alive = [one for one in self._live.pop(threading.get_ident(), ()) if one() is not None]
        self._live[threading.get_ident()] = [*alive, weakref.ref(run)]

    def current(self) -> Run | None:
        """The run of the innermost ``generate()`` call of the calling thread."""
        for reference in reversed(self._live.get(threading.get_ident(), ())):
            run = reference()
            if run is not None and run.is_innermost():
                return run
        return None

    def __deepcopy__(self, memo: Any) -> "Seen":
        return self

    def __reduce__(self) -> Any:
        # Nothing of it means anything in another process.
        return Seen, ()


class CommitTokens(StoppingCriteria):
    """Stops nothing: it is where ``generate()`` first shows the tokens that it sampled."""

    def __init__(self, seen: Seen) -> None:
        self.seen = seen
        # What it answers, kept from step to step
        self._none = torch.zeros(0, dtype=torch.bool)

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        run = self.seen.current()
        if run is None:
            raise ProtocolError(REPLACED)
        run.commit(input_ids, stopped_rows())
        none = self._none
        if len(none) != len(input_ids) or none.device != input_ids.device:
            none = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
            self._none = none
        return none

    def __repr__(self) -> str:
        # Continuous batching refuses stopping criteria and prints them: all that it says is this.
        return f"<tokenlens: {PAGED}>"
