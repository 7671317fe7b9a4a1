"""The logits of one step while methods edit them: which tensor may be changed, and how to go back.

Few logits are changed in place, in the engine's tensor where its contract allows that, else in one
copy; what they held is kept, so that a row whose edited logits cannot be used gets them back. Edits
of whole rows make a tensor of their own. Copying a large vocabulary takes longer than any edit.
"""

import torch
from torch import Tensor


class LogitEdits:
    """Of one step.

    Parameters
    ----------
    stock
        ``[num_rows, columns]``: the engine's logits.
    in_place
        The engine lets others change them.
    """

    def __init__(self, stock: Tensor, in_place: bool) -> None:
        self.stock, self.in_place = stock, in_place
        # An ordinary tensor of ours, which the engine may change in place
        self._own: Tensor | None = stock if in_place else None
        # Of the engine's logits: ids, and what they held
        self._before: list[tuple[Tensor, Tensor]] = []

    def writable(self, logits: Tensor, ids: Tensor) -> Tensor:
        """The logits in a tensor in which those of some ids may be changed.

        Parameters
        ----------
        ids
            ``[num_rows, size]`` int64; below 0: none.
        """
        if logits is not self.stock:
            return logits
        if self.in_place:
            place = ids.clamp(min=0)
            self._before.append((place, logits.gather(1, place)))
            return logits
        with torch.inference_mode(False), torch.no_grad():
            self._own = logits.clone(memory_format=torch.contiguous_format)
        return self._own

    def settle(self, logits: Tensor, usable: Tensor) -> Tensor:
        """Edited rows where they can be used, else the engine's; an ordinary tensor.

        Parameters
        ----------
        logits
            ``[num_rows, columns]``, edited.
        usable
            ``[num_rows]`` bool.
        """
        if self._before:
            self.undo(~usable)
        if logits is self.stock:
            return logits
        if self._own is None:
            with torch.inference_mode(False):
                self._own = torch.empty_like(self.stock, memory_format=torch.contiguous_format)
        return torch.where(usable[:, None], logits, self.stock, out=self._own)

    def undo(self, rows: Tensor | None = None) -> None:
        """Give the engine's tensor back what it held, in some rows or in all."""
        for place, before in reversed(self._before):
            values = before
            if rows is not None:
                values = torch.where(rows[:, None], before, self.stock.gather(1, place))
            with torch.no_grad():
                self.stock.scatter_(1, place, values)
