"""The automata of live requests on the device, in bounded memory.

A request's markers take a row of classes and a row of transitions; requests with the same markers
share them. Rows that no live request uses are kept for the next request with these markers, until
other markers need the memory. Knows no slots and no texts.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from tokenlens.core.automaton import Automaton
from tokenlens.core.columns import Field, Value
from tokenlens.core.marker_columns import AT, CLASSES, EFFECT, HOT, STATE, STATE_SHIFT
from tokenlens.spec import SpecError

MAX_MOVES = 1 << 16
"""The most transitions, states times classes, of one request's markers."""
MAX_BYTES = 32 << 20
"""Device memory that a server gives to the markers of all live requests."""
MAX_ROWS = (1 << 31 - STATE_SHIFT) // MAX_MOVES - 1
"""Rows whose addresses fit a transition."""


def most_markers(vocab_size: int) -> int:
    """How many different markers of several tokens a server has room for."""
    return min(max(1, MAX_BYTES // (2 * (vocab_size + 2) + 4 * MAX_MOVES)), MAX_ROWS)


def too_many(limit: int) -> SpecError:
    """What is said to the request that is one too many."""
    return SpecError.of(
        "phase",
        f"markers of several tokens, beside {limit} other ones that are in use",
        f"at most {limit} different ones at once: ask again when a request with other markers has"
        " ended, or use markers that others use",
    )


class MarkerTable:
    """Classes and transitions by address.

    Parameters
    ----------
    vocab_size
        Tokens that have classes.
    max_rows
        The most automata at once. Memory is taken when it is needed.
    """

    def __init__(self, vocab_size: int, device: torch.device, max_rows: int) -> None:
        # One cell in front and one behind the tokens, for what is none.
        self._width = vocab_size + 2
        self._device = device
        self.max_rows = min(max_rows, MAX_ROWS)
        # Which automaton, by its key, is in which row, the one that was left first in front, and
        # how many live requests use it
        self._rows: dict[str, int] = {}
        self._users: dict[str, int] = {}
        self._made = 0
        self._classes = torch.zeros(0, dtype=torch.int16, device=device)
        self._moves = torch.zeros(0, dtype=torch.int32, device=device)

    @property
    def tensors(self) -> tuple[Tensor, Tensor]:
        """``[rows * width]`` int16 and ``[rows * MAX_MOVES + 1]`` int32."""
        return self._classes, self._moves

    def enter(self, automaton: Automaton) -> None:
        """One more request has these markers.

        Raises
        ------
        SpecError
            Too many different markers are in use.
        """
        key = automaton.key
        row = self._rows.pop(key, None)
        if row is None:
            row = self._free_row()
            self._write(row, automaton)
        self._rows[key] = row
        self._users[key] = self._users.get(key, 0) + 1

    def leave(self, automaton: Automaton) -> None:
        """One request less has these markers."""
        key = automaton.key
        self._users[key] -= 1
        if self._users[key] == 0:
            del self._users[key]
            # To the end: those that were left first go first.
            self._rows[key] = self._rows.pop(key)

    @property
    def rows_in_use(self) -> int:
        """Different markers of live requests."""
        return len(self._users)

    def columns(self, automaton: Automaton, entry: int) -> Mapping[Field, Value]:
        """Where a request of this automaton is that has just made a transition."""
        row = self._rows[automaton.key]
        state = _first(row) + (entry >> STATE_SHIFT) * automaton.moves.shape[1]
        return {CLASSES: row * self._width + 1, STATE: state << STATE_SHIFT | entry & (AT | EFFECT)}

    def _free_row(self) -> int:
        if self._made > self.max_rows:
            left = next((key for key in self._rows if key not in self._users), None)
            if left is None:
                raise too_many(self.max_rows)
            return self._rows.pop(left)
        if self._made == 0:
            # Row 0 is that of requests whose markers are single tokens: any that a method asks
            # about is one, and nothing else happens.
            self._grow(1)
            self._moves[0] = HOT
            self._made = 1
        self._grow(self._made + 1)
        self._made += 1
        return self._made - 1

    def _grow(self, rows: int) -> None:
        """Make memory for so many rows; twice as many as before, within the bound."""
        held = len(self._classes) // self._width
        if rows <= held:
            return
        held = min(max(rows, 2 * held), self.max_rows + 1)
        classes = torch.zeros(held * self._width, dtype=torch.int16, device=self._device)
        moves = torch.zeros(_first(held), dtype=torch.int32, device=self._device)
        classes[: len(self._classes)] = self._classes
        moves[: len(self._moves)] = self._moves
        self._classes, self._moves = classes, moves

    def _write(self, row: int, automaton: Automaton) -> None:
        first, size = _first(row), automaton.moves.size
        begin = row * self._width
        classes = torch.zeros(self._width, dtype=torch.int16)
        known = torch.from_numpy(automaton.classes)[: self._width - 2]
        classes[1 : 1 + len(known)] = known
        self._classes[begin : begin + self._width].copy_(classes)
        moves = torch.from_numpy(automaton.moves).long()
        state = first + (moves >> STATE_SHIFT) * moves.shape[1]
        moves = state << STATE_SHIFT | moves & ((1 << STATE_SHIFT) - 1)
        self._moves[first : first + size].copy_(moves.reshape(-1))


def _first(row: int) -> int:
    """Where a row's transitions begin; row 0 has a single one."""
    return 0 if row == 0 else 1 + (row - 1) * MAX_MOVES
