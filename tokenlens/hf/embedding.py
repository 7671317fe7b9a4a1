"""The model's input embedding: mixtures of what it looks up, and their way into the forward."""

from typing import Any

import torch
from tokenlens_kernels import concept_mixture
from torch import Tensor, nn

from tokenlens.core import NextInputs

PROBED_IDS = 3
"""Rows of the table that are looked up to learn what the module does to them."""


class HookedEmbedding:
    """A model's input embedding, measured once and never assumed to be a plain table.

    A mixture is ``sum_k w_k * module(id_k)``. Where the module turns out to be a table times a
    constant (Gemma scales inside the module), the table is read directly; otherwise (LoRA, norms,
    offloaded or quantised weights) the module itself is called.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._armed: tuple[Tensor, Tensor] | None = None
        self._inside = False
        self._scale: float | None = None

    @torch.no_grad()
    def probe(self) -> None:
        """Find out whether the module is ``c * weight[id]``; reads the device, once a call."""
        weight = getattr(self.module, "weight", None)
        self._scale = None
        if not isinstance(weight, Tensor) or weight.is_meta or weight.ndim != 2:
            return
        if type(weight) not in (Tensor, nn.Parameter) or not weight.is_floating_point():
            return
        last = len(weight) - 1
        ids = torch.tensor([0, last // 2, last], device=weight.device)[:PROBED_IDS]
        out = self.look_up(ids[None])[0]
        if out.shape != (len(ids), weight.shape[1]) or out.dtype != weight.dtype:
            return
        rows = weight[ids]
        norm = (rows.double() ** 2).sum()
        if not norm > 0:
            return
        scale = float((out.double() * rows.double()).sum() / norm)
        # A scale that the model's dtype cannot hold was rounded when the module was built.
        scale = float(torch.tensor(scale, dtype=weight.dtype))
        if torch.equal(out, rows * torch.tensor(scale, dtype=weight.dtype, device=rows.device)):
            self._scale = scale

    @property
    def is_table(self) -> bool:
        """Whether the table is read directly."""
        return self._scale is not None

    @property
    def table(self) -> Tensor:
        """The table, where it is read directly."""
        weight = self.module.weight
        assert isinstance(weight, Tensor)
        return weight

    @property
    def scale(self) -> float:
        """What the module multiplies its table by."""
        assert self._scale is not None
        return self._scale

    def look_up(self, ids: Tensor) -> Tensor:
        """The module's own output for ``[rows, n]`` ids, without our hook."""
        self._inside = True
        try:
            out = self.module(ids)
        finally:
            self._inside = False
        assert isinstance(out, Tensor)
        return out

    def mixture(self, feed: NextInputs, num_rows: int, dtype: torch.dtype | None = None) -> Tensor:
        """``[num_rows, hidden]`` mixtures of the first rows of a feed plan.

        Parameters
        ----------
        dtype
            float32 for mixtures that something is added to; ``None``: the module's own.
        """
        return self.mix(feed.ids[:num_rows], feed.weights[:num_rows], dtype)

    def mix(self, ids: Tensor, weights: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """``[rows, hidden]`` mixtures of ``[rows, width]`` ids with weights."""
        if self._scale is not None:
            table = self.module.weight
            assert isinstance(table, Tensor)
            return concept_mixture(
                table,
                ids.to(table.device),
                weights.to(table.device),
                scale=self._scale,
                out_dtype=dtype,
            )
        out = self.look_up(ids)
        return (weights.to(out.device)[:, :, None] * out.float()).sum(dim=1).to(out.dtype)

    def arm(self, latent: Tensor, mixture: Tensor) -> None:
        """Put mixtures into the latent rows of the next ``[rows, 1]`` lookup."""
        self._armed = (latent, mixture)

    @property
    def is_armed(self) -> bool:
        """The mixtures given to :meth:`arm` have not been fed yet."""
        return self._armed is not None

    def disarm(self) -> None:
        """Forget the mixtures that were not fed."""
        self._armed = None

    def hook(self, module: nn.Module, output: Any) -> Any:
        """After a lookup: the armed rows' embeddings, all other rows bit for bit as they were."""
        if self._armed is None or self._inside or module is not self.module:
            return None
        latent, mixture = self._armed
        # Other calls are not the decode step's (a multimodal model asks for a placeholder's row).
        if not isinstance(output, Tensor) or output.shape[:2] != (len(latent), 1):
            return None
        self._armed = None
        return substitute(output, latent, mixture)


def substitute(embeddings: Tensor, latent: Tensor, mixture: Tensor) -> Tensor:
    """``[rows, 1, hidden]`` embeddings with mixtures in the latent rows.

    A row that is not finite, in the model's dtype, is no input: its token stays.
    """
    mixture = mixture.to(embeddings.device, embeddings.dtype)[:, None]
    sound = mixture.isfinite().all(dim=2, keepdim=True)
    return torch.where(latent.to(embeddings.device)[:, None, None] & sound, mixture, embeddings)
