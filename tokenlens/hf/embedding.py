"""The model's input embedding: mixtures of what it looks up, and their way into the forward."""

from collections.abc import Sequence
from typing import Any

import torch
from tokenlens_kernels import concept_mixture
from torch import Tensor, nn

from tokenlens.core import NextInputs
from tokenlens.core.next_input import PER_LAYER

PROBED_IDS = 3
"""Rows of the table that are looked up to learn what the module does to them."""


class HookedEmbedding:
    """A model's input embedding, measured once and never assumed to be a plain table.

    A mixture is ``sum_k w_k * module(id_k)``. Where the module turns out to be a table times a
    constant (Gemma scales inside the module), the table is read directly; otherwise (LoRA, norms,
    offloaded or quantised weights) the module itself is called.

    Parameters
    ----------
    beside
        Tables that are looked up by the same tokens: per-layer embeddings.
    """

    def __init__(self, module: nn.Module, beside: Sequence[nn.Module] = ()) -> None:
        self.module = module
        self.beside = [PerLayerEmbedding(one) for one in beside]
        self._armed: tuple[Tensor, Tensor] | None = None
        self._inside = False
        self._scale: float | None = None

    @classmethod
    def of(cls, model: Any) -> "HookedEmbedding":
        """A model's, with the tables beside it."""
        main = model.get_input_embeddings()
        found = {name: one for name, one in model.named_modules() if name.endswith(PER_LAYER)}
        return cls(main, [one for one in found.values() if one is not main])

    @torch.no_grad()
    def probe(self) -> None:
        """Find out whether the module is ``c * weight[id]``; reads the device, once a call."""
        for one in self.beside:
            one.probe()
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

    def arm_beside(self, feed: NextInputs, num_rows: int) -> None:
        """The same for the tables beside, where a row is fed tokens and no vector of ours."""
        latent = feed.latent[:num_rows]
        if feed.base_weight is not None:
            latent = latent & (feed.base_weight[:num_rows] == 0)
        for one in self.beside:
            one.arm(latent, one.mixture(feed, num_rows))

    @property
    def is_armed(self) -> bool:
        """The mixtures given to :meth:`arm` have not been fed yet."""
        return self._armed is not None

    def disarm(self) -> None:
        """Forget the mixtures that were not fed."""
        for one in (self, *self.beside):
            one._armed = None

    def hook(self, module: nn.Module, output: Any) -> Any:
        """After a lookup: the armed rows' embeddings, all other rows bit for bit as they were."""
        for one in self.beside:
            if module is one.module:
                return one.hook(module, output)
        if self._armed is None or self._inside or module is not self.module:
            return None
        latent, mixture = self._armed
        # Other calls are not the decode step's (a multimodal model asks for a placeholder's row).
        if not isinstance(output, Tensor) or output.shape[:2] != (len(latent), 1):
            return None
        self._armed = None
        return substitute(output, latent, mixture)


class PerLayerEmbedding(HookedEmbedding):
    """A table of per-layer embeddings, which need not know every token of the vocabulary."""

    def mix(self, ids: Tensor, weights: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Mixtures of the tokens that the table has."""
        has = ids < int(self.module.num_embeddings)  # type: ignore[arg-type]
        return super().mix(ids.where(has, 0), weights.where(has, 0), dtype)


def substitute(embeddings: Tensor, latent: Tensor, mixture: Tensor) -> Tensor:
    """``[rows, 1, hidden]`` embeddings with mixtures in the latent rows.

    A row that is not finite, in the model's dtype, is no input: its token stays.
    """
    mixture = mixture.to(embeddings.device, embeddings.dtype)[:, None]
    sound = mixture.isfinite().all(dim=2, keepdim=True)
    return torch.where(latent.to(embeddings.device)[:, None, None] & sound, mixture, embeddings)
