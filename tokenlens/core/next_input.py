"""What each slot's next input is. Adapters read it where their engine embeds tokens."""

import torch
from tokenlens_kernels import philox
from torch import Tensor

from tokenlens.core.columns import MAX_ANCHORS

PER_LAYER = "embed_tokens_per_layer"
"""The table of per-layer embeddings (Gemma 3n, Gemma 4), as every engine names it. It is looked up
by the token beside the input embedding, and mixed as that is."""


class NextInputs:
    """Concept tokens, in tables that stay where they are for the life of a core.

    They are kept by slot, or where the adapter says: one that feeds them again, after a preemption,
    gives the tables of its history, and with each commit the rows that it is to write.

    Attributes
    ----------
    latent
        ``[max_slots + 1]`` bool: the next input is a mixture. False: the sampled token's own
        embedding, which the engine looks up as it always does. Without any row beside a history.
    weights, ids
        ``[max_slots + 1, width]`` float32 and int64, or the history's. With ``base_weight`` they
        sum to 1; dead entries have weight 0 and the id of entry 0. What is discrete has its sampled
        token with weight 1.
    base, base_weight
        ``[max_slots + 1, hidden]`` and ``[max_slots + 1]`` float32: a vector of the engine's own
        that the mixture is added to, and its weight. ``None`` where the engine has none.
    noise_scale, noise_seed, noise_position
        ``[max_slots + 1]`` each: Gaussian noise on what is fed, in units of the embedding's root
        mean square, of a coordinate or, negative, of a row. ``None`` where the engine cannot.
    """

    base: Tensor | None = None
    base_weight: Tensor | None = None
    noise_scale: Tensor | None = None
    noise_seed: Tensor | None = None
    noise_position: Tensor | None = None

    def __init__(
        self,
        max_slots: int,
        width: int,
        device: torch.device,
        history: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        # One row more than adapters read, for what is not kept.
        self._num_rows = max_slots + 2
        self.has_history = history is not None
        if history is None:
            self._latent = torch.zeros(self._num_rows, dtype=torch.bool, device=device)
            self._all = (
                torch.zeros(self._num_rows, width, dtype=torch.float32, device=device),
                torch.zeros(self._num_rows, width, dtype=torch.int64, device=device),
            )
            self.weights, self.ids = (table[:-1] for table in self._all)
        else:
            self._latent = torch.zeros(1, dtype=torch.bool, device=device)
            self._all = history
            self.weights, self.ids = history
        self.latent = self._latent[:-1]

        # [1, width]: one entry that has all the weight
        self._one_token = torch.zeros(1, width, dtype=torch.float32, device=device)
        self._one_token[:, 0] = 1
        self._anchors = torch.arange(width, device=device) >= width - MAX_ANCHORS

    def extend(self, hidden_size: int) -> None:
        """Add tables for an engine's vectors and for noise."""
        size, device = self._num_rows, self.latent.device
        scalar = (torch.float32, torch.float32, torch.int64, torch.int64)
        self._of_engine = (
            torch.zeros(size, hidden_size, device=device),
            *(torch.zeros(size, dtype=dtype, device=device) for dtype in scalar),
        )
        self.base, self.base_weight, *noise = (table[:-1] for table in self._of_engine)
        self.noise_scale, self.noise_seed, self.noise_position = noise

    def clear(self, slot: int) -> None:
        """Make a slot discrete: what it was fed is no later request's."""
        if not self.has_history:
            self.latent[slot] = False
        if self.base_weight is not None and self.noise_scale is not None:
            # They are written while a live request needs them, and slots are used again.
            self.base_weight[slot] = self.noise_scale[slot] = 0.0

    def write(
        self,
        entries: Tensor,
        latent: Tensor,
        weights: Tensor,
        ids: Tensor,
        sampled: Tensor,
        base_weight: Tensor | None = None,
    ) -> None:
        """Keep this step's concept tokens in the given rows: slots, or those of the history."""
        if base_weight is not None:
            # A vector of the engine's stands in for all entries but the anchors.
            share = base_weight[:, None]
            out = ((share > 0) & ~self._anchors) | (share >= 1)
            weights = torch.where(out, 0.0, weights)
        # The reference divides by the sum again where it embeds; after a cut and noise the sum is
        # already 1 up to rounding, and exactly 1 for a single entry.
        total = weights.sum(dim=1, keepdim=True)
        if base_weight is not None:
            total = total + base_weight[:, None]
        # Rows without any are not latent.
        weights = weights / total
        mask = latent[:, None]
        rows = (
            torch.where(mask, weights, self._one_token),
            torch.where(mask, ids, sampled[:, None]),
        )
        for table, values in zip(self._all, rows, strict=True):
            table.index_copy_(0, entries, values[:, : table.shape[1]])
        if not self.has_history:
            self._latent.index_copy_(0, entries, latent)

    def write_base(self, slots: Tensor, base: Tensor, base_weight: Tensor) -> None:
        """Set the engine's vectors of the given slots."""
        for table, values in zip(self._of_engine[:2], (base, base_weight), strict=True):
            table.index_copy_(0, slots, values)

    def write_noise(self, slots: Tensor, scale: Tensor, seed: Tensor, position: Tensor) -> None:
        """Set the noise of the given slots."""
        for table, values in zip(self._of_engine[2:], (scale, seed, position), strict=True):
            table.index_copy_(0, slots, values)

    def noise(self, num_rows: int, hidden_size: int) -> Tensor:
        """``[num_rows, hidden]`` normal draws of the first slots, times their scale."""
        assert self.noise_seed is not None
        assert self.noise_position is not None
        draws = gaussian(self.noise_seed[:num_rows], self.noise_position[:num_rows], hidden_size)
        return draws * self.noise_deviation(slice(num_rows), hidden_size)[:, None]

    def noise_deviation(self, slots: Tensor | slice, hidden_size: int) -> Tensor:
        """``[n]`` standard deviations of some slots' noise, in units of the embedding's RMS."""
        assert self.noise_scale is not None
        scale = self.noise_scale[slots]
        # Negative: of a row's norm, the root of the width times that of a coordinate.
        return torch.where(scale < 0, -scale * hidden_size**0.5, scale)


def gaussian(seed: Tensor, position: Tensor, hidden_size: int) -> Tensor:
    """Standard normal draws ``[n, hidden]``, a function of seed and position alone."""
    index = torch.arange(hidden_size, device=seed.device)
    place = philox.offset(position[:, None], index, philox.NORMAL)
    return philox.normal(seed[:, None], place)
