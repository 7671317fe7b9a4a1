"""Not a decoding method: asks for the signals of steps that no method looks at, for a full trace.

The distribution is the model's own: temperature 1, no filters. Nothing is decided here.
"""

import torch

from tokenlens.core.method import Method
from tokenlens.core.proposal import SignalRequest
from tokenlens.core.rows import Rows
from tokenlens.spec.base import MAX_ENTRIES


class TraceMethod(Method):
    """On for requests whose spec says ``trace.level: full``."""

    def __init__(self) -> None:
        super().__init__("trace")

    def request_signals(self, rows: Rows, request: SignalRequest) -> None:
        unasked = rows[self.on] & ~request.active
        request.active = request.active | unasked
        request.inverse_temperature = torch.where(unasked, 1.0, request.inverse_temperature)
        request.top_k = torch.where(unasked, 0, request.top_k)
        request.top_p = torch.where(unasked, 1.0, request.top_p)
        request.min_p = torch.where(unasked, 0.0, request.min_p)
        request.max_entries = torch.where(unasked, MAX_ENTRIES, request.max_entries)
        request.noise_temperature = torch.where(unasked, 0.0, request.noise_temperature)


TRACE = TraceMethod()
