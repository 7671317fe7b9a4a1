"""Concept tokens that were fed, kept for as long as their request lives, in bounded memory.

An *entry* is one concept token, which the core writes. Each slot owns the entry of its number, for
its newest token; a request that may be latent gets pages of entries behind them, so that all of its
concept tokens can be fed again after a preemption; what must not be kept is written to the last
entry. Where an entry is, is known on the host; what is in it, only on the device. Knows no engine
and no methods.
"""

import numpy as np
import torch
from numpy.typing import NDArray

PAGE = 64
"""Entries of a page: a request takes a new page every 64 tokens."""

NO_PAGE, PLAIN, MISSED = -1, -2, -3
"""In the place of a page: none yet; its tokens were fed as themselves, and need none; there was
none when it was needed."""


def entry_bytes(width: int) -> int:
    """Device memory of one entry: a float32 and an int64 for each place."""
    return width * 12


class ConceptStore:
    """Entries on the device and the page tables that say whose they are.

    Parameters
    ----------
    max_slots
        Requests that can have entries at once.
    width
        Places of a concept token.
    num_bytes
        Device memory for pages.
    max_tokens
        The longest request, in generated tokens.

    Attributes
    ----------
    weights, ids
        ``[entries, width]`` float32 and int64: the core's history.
    nowhere
        The entry of what is not kept.
    """

    def __init__(
        self, max_slots: int, width: int, num_bytes: int, max_tokens: int, device: torch.device
    ) -> None:
        self.max_slots, self.width = max_slots, width
        self.num_pages = max(1, num_bytes // (entry_bytes(width) * PAGE))
        # The last of those before it is that of rows without a request.
        self._first = max_slots + 1
        self.nowhere = self._first + self.num_pages * PAGE
        entries = self.nowhere + 1
        self.weights = torch.zeros(entries, width, dtype=torch.float32, device=device)
        self.ids = torch.zeros(entries, width, dtype=torch.int64, device=device)
        # [max_slots + 1, pages of a request]: page numbers; the last has none
        self.pages: NDArray[np.int64] = np.full(
            (max_slots + 1, -(-max_tokens // PAGE) + 1), NO_PAGE, dtype=np.int64
        )
        self._free = list(range(self.num_pages - 1, -1, -1))

    @property
    def pages_in_use(self) -> int:
        """Pages that belong to requests."""
        return self.num_pages - len(self._free)

    def describe(self) -> str:
        """One line for the log: the bound and what it holds."""
        mib = self.num_pages * PAGE * entry_bytes(self.width) / 2**20
        return (
            f"{mib:.1f} MiB of device memory for {self.num_pages * PAGE} concept tokens of"
            f" {self.width} entries (setting: history_mib)"
        )

    def take_page(self, slot: int, index: int) -> int:
        """Make room for token ``index`` of a slot; without a free page, remember that it is not.

        Returns
        -------
        int
            The page, or what stands in its place.
        """
        column = index // PAGE
        if self.pages[slot, column] == NO_PAGE:
            self.pages[slot, column] = self._free.pop() if self._free else MISSED
        return int(self.pages[slot, column])

    def first_entry(self, page: int) -> int:
        """Where a page's entries begin."""
        return self._first + page * PAGE

    def give_back(self, slot: int, first: int, stop: int) -> None:
        """Free the pages that hold nothing but tokens from ``first`` up to ``stop``."""
        # The newest ones first: those before them may have gone already.
        for column in reversed(range(-(-first // PAGE), stop // PAGE)):
            page = int(self.pages[slot, column])
            if page == PLAIN:
                break
            if page >= 0:
                self._free.append(page)
            self.pages[slot, column] = PLAIN

    def states(self, slots: NDArray[np.int64], indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """The pages of the given tokens of the given slots, or what stands in their places."""
        found: NDArray[np.int64] = self.pages[slots, indices // PAGE]
        return found

    def release(self, slot: int) -> None:
        """Give a slot's pages back."""
        row = self.pages[slot]
        self._free.extend(int(page) for page in row[row >= 0])
        row[:] = NO_PAGE

    def detach(self, slot: int) -> NDArray[np.int64]:
        """Take the pages of a slot away without freeing them, for a request that loses its slot."""
        pages: NDArray[np.int64] = self.pages[slot].copy()
        self.pages[slot] = NO_PAGE
        return pages

    def attach(self, slot: int, pages: NDArray[np.int64]) -> None:
        """Give detached pages to a slot."""
        self.pages[slot] = pages

    def free_detached(self, pages: NDArray[np.int64]) -> None:
        """Free the pages of a request that ended while it had no slot."""
        self._free.extend(int(page) for page in pages[pages >= 0])

    def entries(self, slots: NDArray[np.int64], indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where the given tokens of the given slots are: a page's entry, or the slot's own."""
        page = self.pages[slots, indices // PAGE]
        return np.where(page >= 0, self._first + page * PAGE + indices % PAGE, slots)
