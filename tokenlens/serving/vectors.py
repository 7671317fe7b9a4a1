"""What is fed beside concept tokens, kept as long as they are: vectors, and noise.

A vector (a hidden state, a mixture of the whole vocabulary) takes as many bytes as the model is
wide, so it has no place in every entry of the history: a request is given an *extent* of rows for
those that it may need when it is admitted, and its n-th latent step writes the n-th of them. Which
entry points to which vector is known on the device alone. Noise is not kept: an entry holds what it
is drawn from. Knows no engine and no methods.
"""

import numpy as np
import torch
from torch import Tensor

from tokenlens.core import Core, Request
from tokenlens.core.columns import LATENT_STEPS
from tokenlens.serving.engine_vectors import ServedVectors
from tokenlens.serving.settings import vector_bytes
from tokenlens.serving.store import PAGE, ConceptStore
from tokenlens.spec.needs import Need

Extent = tuple[int, int]
"""The first row and the number of rows that a request's vectors have."""


class VectorStore:
    """Vectors on the device, and which entry of a history is fed which, with which noise.

    Parameters
    ----------
    source
        What makes them.
    store
        The history whose entries they belong to.
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
    without_extent
        ``[max_slots + 1]`` bool, on the host: the slot's vectors found no extent, so that only its
        newest is kept.
    """

    def __init__(self, source: ServedVectors, store: ConceptStore, capacity: int) -> None:
        self.source, self.hidden_size, self.capacity = source, source.hidden_size, capacity
        device, entries, slots = store.ids.device, len(store.ids), store.max_slots
        self._begin, self._nowhere = 1 + slots, store.nowhere
        self.vectors = torch.zeros(self._begin + capacity, self.hidden_size, device=device)
        self.rows = torch.zeros(entries, dtype=torch.int64, device=device)
        self.scale = torch.zeros(entries, device=device)
        self.seed = torch.zeros_like(self.rows)
        self.position = torch.zeros_like(self.rows)
        # [max_slots + 2] each: the slots' extents; the last two are those of rows without a request
        self._first = torch.zeros(slots + 2, dtype=torch.int64, device=device)
        self._size = torch.zeros_like(self._first)
        self.without_extent = np.zeros(slots + 1, dtype=bool)
        # Slots whose request may be fed more than concept tokens
        self._adding: set[int] = set()
        # By request: its extent, None if it found none
        self._extents: dict[str, Extent | None] = {}
        # Disjoint, in order
        self._free: list[Extent] = [(self._begin, capacity)]
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
        """Vectors that requests have an extent for."""
        return self.capacity - sum(size for _, size in self._free)

    def describe(self) -> str:
        """One line for the log: the bound and what it holds."""
        each = vector_bytes(self.hidden_size)
        return (
            f"{self.capacity * each / 2**20:.1f} MiB of device memory for {self.capacity} vectors"
            f" of {each} bytes, one for each latent step that feeds one (setting: vectors_mib)"
        )

    # Requests come and go.

    def admit(self, req_id: str, wanted: int) -> None:
        """Give a new request, which may be fed so many vectors, an extent, if there is any."""
        if wanted:
            self._extents[req_id] = self._take(wanted)

    def finish(self, req_id: str) -> None:
        """A request ended: its extent is free."""
        extent = self._extents.pop(req_id, None)
        if extent is not None:
            self._give(extent)

    def _take(self, size: int) -> Extent | None:
        for index, (first, free) in enumerate(self._free):
            if free >= size:
                self._free[index : index + 1] = [(first + size, free - size)] * (free > size)
                return first, size
        return None

    def _give(self, extent: Extent) -> None:
        merged: list[Extent] = []
        for first, size in sorted([*self._free, extent]):
            if merged and sum(merged[-1]) == first:
                merged[-1] = (merged[-1][0], merged[-1][1] + size)
            else:
                merged.append((first, size))
        self._free = merged

    def seat(self, slot: int, req_id: str, request: Request) -> None:
        """A request has a slot: its vectors go to its extent; without, only its newest is kept."""
        if not request.needs & Need.OF_ENGINE:
            return
        self._adding.add(slot)
        extent = self._extents.get(req_id)
        self.without_extent[slot] = extent is None and req_id in self._extents
        self._first[slot], self._size[slot] = extent or (0, 0)

    def leave(self, slot: int) -> None:
        """A slot's request goes: its own entry adds nothing any more."""
        if slot in self._adding:
            self._adding.remove(slot)
            self.without_extent[slot] = False
            self._first[slot] = self._size[slot] = 0
            self._clean(slice(slot, slot + 1))

    def take_page(self, page: int, first_entry: int, slot: int) -> None:
        """A page of the history has a new owner."""
        if page in self._dirty:
            self._clean(slice(first_entry, first_entry + PAGE))
            self._dirty.discard(page)
        if slot in self._adding:
            self._dirty.add(page)

    def _clean(self, entries: slice) -> None:
        self.rows[entries] = 0
        self.scale[entries] = 0.0

    # Steps.

    def begin(self, core: Core, num_rows: int) -> None:
        """A pass of so many rows begins."""
        self.source.arm(num_rows if Need.HIDDEN_STATE in core.live_needs else 0)

    def keep(self, core: Core, entries: Tensor, slots: Tensor) -> None:
        """Keep what a step's rows are fed beside their concept tokens.

        Parameters
        ----------
        entries, slots
            ``[num_rows]`` int64: where a row's concept token went, and its slot.
        """
        if core.live_needs & Need.ENGINE_VECTOR:
            self._keep_vectors(core, entries, slots)
        if Need.EMBEDDING_NOISE in core.live_needs:
            self._keep_noise(core, entries, slots)

    def _keep_vectors(self, core: Core, entries: Tensor, slots: Tensor) -> None:
        feed, table = core.next_input, core.table
        assert feed.base is not None
        assert feed.base_weight is not None
        weight = feed.base_weight.index_select(0, slots)
        # This step's is counted already.
        latent_steps = table.ints.select(1, table.columns[LATENT_STEPS].start)
        place = latent_steps.index_select(0, slots) - 1
        first, size = self._first.index_select(0, slots), self._size.index_select(0, slots)
        row = torch.where((place >= 0) & (place < size), first + place, 1 + slots)
        row = torch.where((weight > 0) & (entries != self._nowhere), row, 0)
        self.vectors.index_copy_(0, row, feed.base.index_select(0, slots) * weight[:, None])
        self.rows.index_copy_(0, entries, row)

    def _keep_noise(self, core: Core, entries: Tensor, slots: Tensor) -> None:
        feed = core.next_input
        assert feed.noise_seed is not None
        assert feed.noise_position is not None
        deviation = feed.noise_deviation(slots, self.hidden_size) * self.source.rms()
        self.scale.index_copy_(0, entries, deviation)
        self.seed.index_copy_(0, entries, feed.noise_seed.index_select(0, slots))
        self.position.index_copy_(0, entries, feed.noise_position.index_select(0, slots))
