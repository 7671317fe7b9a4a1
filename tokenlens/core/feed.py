"""The feed plan: what each slot's next input is. Engines read it where they embed tokens."""

import torch
from torch import Tensor


class FeedPlan:
    """Concept tokens by slot, at fixed addresses so that a captured graph can read them.

    Attributes
    ----------
    latent
        ``[max_slots + 1]`` bool: the next input is a mixture. False: the sampled token's own
        embedding, which the engine looks up as it always does.
    weights, ids
        ``[max_slots + 1, width]`` float32 and int64. Weights sum to 1; dead entries have weight 0
        and the id of entry 0. A discrete slot has its sampled token with weight 1.
    """

    def __init__(self, max_slots: int, width: int, device: torch.device) -> None:
        # One row more than anybody reads, for what is not kept.
        self._all = (
            torch.zeros(max_slots + 2, dtype=torch.bool, device=device),
            torch.zeros(max_slots + 2, width, dtype=torch.float32, device=device),
            torch.zeros(max_slots + 2, width, dtype=torch.int64, device=device),
        )
        self.latent, self.weights, self.ids = (table[:-1] for table in self._all)

        # [1, width]: one entry that has all the weight
        self._alone = torch.zeros(1, width, dtype=torch.float32, device=device)
        self._alone[:, 0] = 1

    def clear(self, slot: int) -> None:
        """Make a slot discrete."""
        self.latent[slot] = False

    def write(
        self, slots: Tensor, latent: Tensor, weights: Tensor, ids: Tensor, sampled: Tensor
    ) -> None:
        """Set the next input of the given slots from this step's concept tokens."""
        # The reference divides by the sum again where it embeds; after a cut and noise the sum is
        # already 1 up to rounding, and exactly 1 for a single entry.
        weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=1e-30)
        mask = latent[:, None]
        rows = (
            latent,
            torch.where(mask, weights, self._alone),
            torch.where(mask, ids, sampled[:, None]),
        )
        for table, values in zip(self._all, rows, strict=True):
            table.index_copy_(0, slots, values)
