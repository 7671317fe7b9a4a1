"""What is fed beside concept tokens, kept as long as they are: vectors, and noise.

A vector (a hidden state, a mixture of the whole vocabulary) takes as many bytes as the model is
wide, so it has no place in every entry of the history: a request is given *room* for the vectors
that it may need when it is admitted, and its n-th latent step writes the n-th of them. Which entry
points to which vector is known on the device alone. Noise is not kept: an entry holds what it is
drawn from. Knows no engine and no methods.
"""

import torch
from torch import Tensor

from tokenlens.core.next_input import NextInputs
from tokenlens.serving.settings import vector_bytes
from tokenlens.serving.store import PAGE, ConceptStore

Room = tuple[int, int]
"""The first row and the number of rows that a request's vectors have."""


class VectorStore:
    """Vectors on the device, and which entry of a history is fed which, with which noise.

    Parameters
    ----------
    store
        The history whose entries they belong to.
    hidden_size
        Coordinates of a vector.
    capacity
        Vectors that requests can have together; each slot has one more, for its newest.

    Attributes
    ----------
    vectors
        ``[rows, hidden]`` float32, times their weights. Row 0 is nobody's.
    rows
        ``[entries]`` int64: the vector that an entry adds, 0 for none.
    scale, seed, position
        ``[entries]`` each: the noise that an entry adds, of standard deviation ``scale``.
    """

    def __init__(self, store: ConceptStore, hidden_size: int, capacity: int) -> None:
        self.hidden_size, self.capacity = hidden_size, capacity
        device, entries = store.ids.device, len(store.ids)
        self._begin = 1 + store.max_slots
        self.vectors = torch.zeros(self._begin + capacity, hidden_size, device=device)
        self.rows = torch.zeros(entries, dtype=torch.int64, device=device)
        self.scale = torch.zeros(entries, device=device)
        self.seed = torch.zeros_like(self.rows)
        self.position = torch.zeros_like(self.rows)
        # [max_slots + 2] each: the slots' rooms; the last two are those of rows without a request
        self._first = torch.zeros(store.max_slots + 2, dtype=torch.int64, device=device)
        self._size = torch.zeros_like(self._first)
        # Disjoint, in order
        self._free: list[Room] = [(self._begin, capacity)]
        # Pages of the history that may hold more than concept tokens
        self._dirty: set[int] = set()

    @property
    def buffers(self) -> dict[str, Tensor]:
        """What the embedding reads, by name; at fixed addresses."""
        return {
            "vectors": self.vectors,
            "vector_rows": self.rows,
            "noise_scale": self.scale,
            "noise_seed": self.seed,
            "noise_position": self.position,
        }

    @property
    def in_use(self) -> int:
        """Vectors that requests have room for."""
        return self.capacity - sum(size for _, size in self._free)

    def describe(self) -> str:
        """One line for the log: the bound and what it holds."""
        each = vector_bytes(self.hidden_size)
        return (
            f"{self.capacity * each / 2**20:.1f} MiB of device memory for {self.capacity} vectors"
            f" of {each} bytes (setting: vectors_mib)"
        )

    def take(self, size: int) -> Room | None:
        """Room for so many vectors, ``None`` if there is none."""
        for index, (first, free) in enumerate(self._free):
            if free >= size:
                self._free[index : index + 1] = [(first + size, free - size)] * (free > size)
                return first, size
        return None

    def give(self, room: Room) -> None:
        """Give room back."""
        merged: list[Room] = []
        for first, size in sorted([*self._free, room]):
            if merged and sum(merged[-1]) == first:
                merged[-1] = (merged[-1][0], merged[-1][1] + size)
            else:
                merged.append((first, size))
        self._free = merged

    def seat(self, slot: int, room: Room | None) -> None:
        """Say where a slot's vectors go; without room only its newest is kept."""
        self._first[slot], self._size[slot] = room or (0, 0)

    def leave(self, slot: int) -> None:
        """A slot's request goes: its own entry adds nothing any more."""
        self.seat(slot, None)
        self._clean(slice(1 + slot, 2 + slot))

    def take_page(self, page: int, first_entry: int, adds: bool) -> None:
        """A page of the history has a new owner, which ``adds`` to its concept tokens or not."""
        if page in self._dirty:
            self._clean(slice(first_entry, first_entry + PAGE))
            self._dirty.discard(page)
        if adds:
            self._dirty.add(page)

    def _clean(self, entries: slice) -> None:
        self.rows[entries] = 0
        self.scale[entries] = 0.0

    def keep(
        self, entries: Tensor, slots: Tensor, feed: NextInputs, latent_steps: Tensor, rms: Tensor
    ) -> None:
        """Keep what a step's rows are fed beside their concept tokens.

        Parameters
        ----------
        entries, slots, latent_steps
            ``[num_rows]`` int64: where a row's concept token went, 0 for nowhere; its slot; and the
            latent steps of its request, this one included.
        rms
            A scalar: of the embedding's coordinates, the unit of the noise.
        """
        assert feed.base is not None
        assert feed.base_weight is not None
        weight = feed.base_weight.index_select(0, slots)
        place = latent_steps - 1
        first, size = self._first.index_select(0, slots), self._size.index_select(0, slots)
        row = torch.where((place >= 0) & (place < size), first + place, 1 + slots)
        row = torch.where((weight > 0) & (entries > 0), row, 0)
        self.vectors.index_copy_(0, row, feed.base.index_select(0, slots) * weight[:, None])
        self.rows.index_copy_(0, entries, row)
        self.scale.index_copy_(0, entries, feed.noise_deviation(slots, self.hidden_size) * rms)
        assert feed.noise_seed is not None
        assert feed.noise_position is not None
        self.seed.index_copy_(0, entries, feed.noise_seed.index_select(0, slots))
        self.position.index_copy_(0, entries, feed.noise_position.index_select(0, slots))
