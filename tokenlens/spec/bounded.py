"""A cache for what clients write: bounded in entries and in bytes, the oldest use goes first."""

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Bounded(Generic[Value]):
    """Remembers what was made of a key; what is too large for it is not kept.

    Parameters
    ----------
    max_entries, max_bytes
        Of all that is kept. Sizes are what the caller says.
    """

    def __init__(self, max_entries: int, max_bytes: int) -> None:
        self.max_entries, self.max_bytes = max_entries, max_bytes
        self.num_bytes = 0
        self._kept: OrderedDict[Hashable, tuple[Value, int]] = OrderedDict()
        # The threads of a front end share it.
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Hashable) -> Value | None:
        """What is kept under a key, ``None`` if nothing is."""
        with self._lock:
            found = self._kept.get(key)
            if found is None:
                return None
            self._kept.move_to_end(key)
            return found[0]

    def put(self, key: Hashable, value: Value, num_bytes: int) -> None:
        """Keep a value, and let the oldest ones go until it fits."""
        if num_bytes > self.max_bytes:
            return
        with self._lock:
            _, before = self._kept.pop(key, (value, 0))
            self.num_bytes += num_bytes - before
            self._kept[key] = value, num_bytes
            while len(self._kept) > self.max_entries or self.num_bytes > self.max_bytes:
                _, (_, size) = self._kept.popitem(last=False)
                self.num_bytes -= size
