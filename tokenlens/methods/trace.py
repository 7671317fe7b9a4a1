"""Not a decoding method: asks for the signals of steps that no method looks at, for a full trace.

The distribution is the model's own: temperature 1, no filters. Nothing is decided here.
"""

import torch

from tokenlens.methods.base import Ask, Method, Rows
from tokenlens.spec.base import MAX_ENTRIES


class TraceMethod(Method):
    """On for requests whose spec says ``trace.level: full``."""

    def __init__(self) -> None:
        super().__init__("trace")

    def ask(self, rows: Rows, ask: Ask) -> None:
        unasked = rows[self.on] & ~ask.active
        ask.active = ask.active | unasked
        ask.inverse_temperature = torch.where(unasked, 1.0, ask.inverse_temperature)
        ask.top_k = torch.where(unasked, 0, ask.top_k)
        ask.top_p = torch.where(unasked, 1.0, ask.top_p)
        ask.min_p = torch.where(unasked, 0.0, ask.min_p)
        ask.max_entries = torch.where(unasked, MAX_ENTRIES, ask.max_entries)
        ask.noise_temperature = torch.where(unasked, 0.0, ask.noise_temperature)
