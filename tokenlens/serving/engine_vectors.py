"""A served model's vectors for the core: what its head and its embedding lend to methods.

An engine shows the rows that go into its language-model head (:class:`HeadWatch`), because they are
exactly the rows that are sampled. Knows no engine and no requests.
"""

from typing import Any, Protocol

import torch
from tokenlens_kernels import dense_mixture
from torch import Tensor, nn

from tokenlens.core import Request
from tokenlens.core.columns import NOISE_SCALE
from tokenlens.core.engine_vectors import (
    REALIGN,
    RESCALE,
    SINGLE,
    Total,
    alignment_matrix,
    mean_norm,
    root_mean_square,
)
from tokenlens.errors import SpecError
from tokenlens.spec.needs import Need

MOST_NORMAL = 7.0
"""No draw of ours is as far from 0."""


def is_plain(module: Any) -> bool:
    """Whether an engine's table of embeddings, or its head, is not quantised."""
    method = type(getattr(module, "quant_method", None)).__name__
    return method == "UnquantizedEmbeddingMethod" or isinstance(module, nn.Embedding)


def rows_of(head: Any) -> Tensor | None:
    """The rows of an engine's head, ``None`` where they are no table (quantised)."""
    weight = getattr(head, "weight", None)
    is_table = isinstance(weight, Tensor) and weight.is_floating_point()
    return weight if is_table and is_plain(head) else None


def sum_over(tensor: Tensor, group: Any, all_reduce: Total) -> Tensor:
    """The sum over a group's ranks, on each of them; an engine's own way has no float64."""
    if group.world_size == 1:
        return tensor
    if tensor.dtype != torch.float64:
        return all_reduce(tensor)
    torch.distributed.all_reduce(tensor, group=group.device_group)
    return tensor


class HeadWatch(Protocol):
    """Looks at the head of a model; nothing is kept of a pass for which nobody asked."""

    width: int
    """Coordinates of the head's input."""

    def weight(self) -> Tensor | None:
        """The head's own shard of its rows, ``None`` where they are no table (quantised)."""

    def arm(self, num_rows: int) -> None:
        """Keep the head's input of the next pass, which has so many rows; 0: of none."""

    def rows(self) -> Tensor:
        """``[num_rows, hidden]``: the head's input behind this step's logits.

        Raises
        ------
        RuntimeError
            The pass that was asked for did not show any.
        """


def _whole(tensor: Tensor) -> Tensor:
    return tensor


class ServedVectors:
    """Vectors of one engine's model; see :class:`tokenlens.core.engine_vectors.EngineVectors`.

    Parameters
    ----------
    module
        The input embedding: its table's shard, and where it begins.
    total
        Sums over shards.
    head
        ``None`` where the head cannot be watched.
    scale
        What the model multiplies its embeddings by behind the table, where the table's own model
        does it inside the embedding: a hidden state that is fed as it is must not be scaled.
        ``None`` where that is not known, and hidden states are not lent.
    vocab_size
        Ids that are tokens.
    alone
        The tokens are looked up in no other table. Per-layer embeddings are the token's own where
        a vector is fed, which the op beside them cannot tell: then only noise is lent.
    """

    def __init__(
        self,
        module: nn.Module,
        total: Total,
        head: HeadWatch | None,
        scale: float | None,
        vocab_size: int,
        *,
        alone: bool = True,
    ) -> None:
        self._module, self._head = module, head
        self._scale, self._vocab_size = scale or 1.0, vocab_size
        shard: Any = getattr(module, "shard_indices", None)
        is_shard = hasattr(shard, "org_vocab_end_index")
        # Else the table is whole on every rank, and nothing is summed.
        self._total = total if is_shard else _whole
        self._start = int(shard.org_vocab_start_index) if is_shard else 0
        self._stop = int(shard.org_vocab_end_index) - self._start if is_shard else None
        self.hosts = Need.EMBEDDING_NOISE
        if alone:
            self.hosts |= Need.DENSE_MIXTURE
        self.hidden_size = int(self._table.shape[1])
        known = head is not None and head.width == self.hidden_size and scale is not None
        if alone and known:
            self.hosts |= Need.HIDDEN_STATE
        # By whether they were made in float32; those that were not asked for are zeros
        self._alignments: dict[bool, Tensor] = {}
        self._made: set[bool] = set()
        self._norm: Tensor | None = None
        self._rms: Tensor | None = None

    @property
    def _table(self) -> Tensor:
        weight = self._module.weight
        assert isinstance(weight, Tensor)
        # Without the rows that pad the vocabulary
        return weight.detach()[: self._stop]

    def arm(self, num_rows: int) -> None:
        """Some live request is fed hidden states in a pass of so many rows; 0: none is."""
        if self._head is not None:
            self._head.arm(num_rows)

    def dense(self, logits: Tensor, active: Tensor, inverse_temperature: Tensor) -> Tensor:
        """The mixture of the whole vocabulary, the same on every rank."""
        part = dense_mixture(
            logits,
            self._table,
            active=active,
            inverse_temperature=inverse_temperature,
            vocab_size=self._vocab_size,
            shard_start=self._start,
            out_dtype=torch.float32,
        )
        return self._total(part)

    def hidden(self) -> Tensor:
        """The hidden states behind this step's logits, as they are to be added to the table's."""
        assert self._head is not None
        found = self._head.rows().float()
        return found if self._scale == 1 else found / self._scale

    @torch.no_grad()
    def alignment(self, *, single: bool = False) -> tuple[Tensor, Tensor]:
        """LatentMAS's matrix, once :meth:`prepare` has made it; else nothing looks at it."""
        if self._norm is None:
            self._norm = mean_norm(self._table, self._total)
        if single not in self._alignments:
            size = self.hidden_size
            self._alignments[single] = torch.zeros(size, size, device=self._table.device)
        return self._alignments[single], self._norm

    def prepare(self, request: Request) -> None:
        """Make what a new request will look at; every rank admits it, and each has to.

        Raises
        ------
        SpecError
            This model cannot give it.
        """
        if Need.EMBEDDING_NOISE in request.needs:
            self._check_noise(request)
        if {REALIGN, RESCALE} & request.used and Need.HIDDEN_STATE in self.hosts:
            self.alignment()
            if REALIGN in request.used:
                self._make_alignment(single=SINGLE in request.used)

    def _check_noise(self, request: Request) -> None:
        """Refuse noise that would not be finite in the model's dtype."""
        rms = self.rms()
        if self._table.dtype != torch.float16:
            return
        most = torch.finfo(torch.float16).max
        scale = float(request.columns[NOISE_SCALE])  # type: ignore[arg-type]
        deviation = -scale * self.hidden_size**0.5 if scale < 0 else scale
        if deviation * float(rms) * MOST_NORMAL > most / 4:
            config = request.spec.latent
            raise SpecError.of(
                f"{config and config.method}.noise_scale",
                abs(scale),
                "one whose noise float16 can hold with this model's embeddings. Ask for less",
            )

    @torch.no_grad()
    def _make_alignment(self, *, single: bool) -> None:
        """Sums over the whole table."""
        assert self._head is not None
        if single in self._made:
            return
        head = self._head.weight()
        table = self._table
        if head is None or len(head) < len(table):
            raise SpecError.of(
                "latent_mas.quirks.realign",
                True,
                "false with this model, whose language-model head is quantised or cut another way"
                " than its embeddings: there are no rows to align with",
            )
        dtype = torch.float32 if single else torch.float64
        made = alignment_matrix(table, head[: len(table)], dtype, self._total)
        # Hidden states are divided by the scale, which the matrix is to have.
        self._alignments[single] = made * self._scale
        self._made.add(single)

    @torch.no_grad()
    def rms(self) -> Tensor:
        """Root mean square of the table's coordinates, a scalar."""
        if self._rms is None:
            self._rms = root_mean_square(self._table, self._total)
        return self._rms
