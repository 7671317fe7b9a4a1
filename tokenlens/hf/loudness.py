"""Says where nothing happened: a call whose thinking never opened, once for a model."""

import contextlib
import warnings
import weakref
from collections.abc import Sequence
from typing import Any

from tokenlens.core.recorder import Recorder
from tokenlens.trace.records import warning_of

_TOLD: "weakref.WeakSet[Any]" = weakref.WeakSet()
"""Models of which somebody has been told."""


def notice(model: "weakref.ref[Any]", recorders: Sequence[Recorder]) -> None:
    """A call of ``generate()`` is over: warn of what came to nothing, once for a model."""
    # Nobody's call ends because of this; after a fault the device may not even be there.
    with contextlib.suppress(Exception):
        _notice(model(), recorders)


def _notice(model: Any, recorders: Sequence[Recorder]) -> None:
    specs = [spec for one in recorders for spec in one.never_opened()]
    if not specs:
        return
    if model is not None and model not in _TOLD:
        _TOLD.add(model)
        warnings.warn(warning_of(specs[0]), RuntimeWarning, stacklevel=2)
