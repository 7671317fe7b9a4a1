"""Key-value caches of many sessions in one model: a slot each, rolled back by forgetting its end.

Knows no request: a caller says which slots a forward pass is for and where each of them begins.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

FIRST_CAPACITY = 256
"""Positions of a slot to begin with; doubled when a session needs more."""


def cache_argument(forward: Callable[..., Any]) -> str:
    """The name under which a forward pass takes its cache: it was renamed in transformers 5.24."""
    return "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"


class SlotCache(Cache):
    """Keys and values as ``[max_slots, heads, capacity, head_dim]`` for each layer.

    A forward pass writes behind each row's own length and reads up to the longest row; the mask
    hides the rest. What a shorter row writes beyond its own queries is overwritten later.
    """

    def __init__(self, max_slots: int) -> None:
        super().__init__(layers=[])
        self._max_slots = max_slots
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self._capacity = FIRST_CAPACITY
        # [num_rows] int64, and [num_rows, num_queries] int64
        self._slots = torch.zeros(0, dtype=torch.int64)
        self._positions = torch.zeros(0, 0, dtype=torch.int64)
        self._span = 0
        self._run: slice | None = None

    def aim(self, slots: list[int], positions: Tensor, span: int) -> None:
        """Say what the next forward pass is for.

        Parameters
        ----------
        slots
            The slot of each row.
        positions
            ``[num_rows, num_queries]`` int64, where each query goes.
        span
            Above the largest position.
        """
        while self._capacity < span:
            self._capacity *= 2
        self._keys = [self._grown(layer) for layer in self._keys]
        self._values = [self._grown(layer) for layer in self._values]
        self._slots = torch.tensor(slots, device=positions.device)
        # Neighbours are looked at in place; anything else is copied together.
        run = slice(slots[0], slots[0] + len(slots))
        self._run = run if slots == list(range(run.start, run.stop)) else None
        self._positions = positions
        self._span = span

    def copy(self, source: int, target: int, count: int) -> None:
        """Have one slot begin with the first ``count`` positions of another one."""
        for layer in (*self._keys, *self._values):
            layer[target, :, :count] = layer[source, :, :count]

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write a layer's new keys and values, and return all that its rows may look at."""
        if layer_idx == len(self._keys):
            self._keys.append(self._empty(key_states))
            self._values.append(self._empty(value_states))
        found = []
        for held, new in (
            (self._keys[layer_idx], key_states),
            (self._values[layer_idx], value_states),
        ):
            # Advanced indices apart put their shape first: [num_rows, num_queries, heads, dim].
            held[self._slots[:, None], :, self._positions] = new.transpose(1, 2)
            seen = held[:, :, : self._span]
            found.append(seen[self._slots if self._run is None else self._run])
        return found[0], found[1]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Zero: each row has its own length, and the caller gives positions and the mask."""
        return 0

    def _empty(self, states: Tensor) -> Tensor:
        shape = (self._max_slots, states.shape[1], self._capacity, states.shape[3])
        return states.new_zeros(shape)

    def _grown(self, layer: Tensor) -> Tensor:
        if layer.shape[2] >= self._capacity:
            return layer
        more = layer.new_zeros(*layer.shape[:2], self._capacity - layer.shape[2], layer.shape[3])
        return torch.cat([layer, more], dim=2)
