"""Two forward passes over the same positions, the second one only where a decider asks for it.

The first pass is the model's own, and sees nothing of second ones. A second one is fed the mixture
of the most probable tokens, at the same position, under LoRA; its queries see the keys of first
passes and those of second passes, each up to their own position. Both passes' logits are added.
Knows no ``generate()``.
"""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.cache_utils import Cache, DynamicCache

from tokenlens.errors import ProtocolError, UnsupportedError
from tokenlens.hf.think_at_hard.learned import FIELD, Learned, decide
from tokenlens.routing.hf_cache import cache_argument

CHUNK = 64
"""Positions whose mixtures are made at once: each takes ``soft_top`` embeddings."""


class SideCache(Cache):
    """Keys and values of second passes, of all rows alike, read behind those of first passes.

    Rows that did not go along have entries as well, which the mask hides.
    """

    def __init__(self, first: DynamicCache, num_rows: int) -> None:
        super().__init__(layers=[])
        self._first, self._num_rows = first, num_rows
        # By layer: [num_rows, heads, entries, head_dim]
        self._held: list[list[Tensor]] = []
        self._rows = torch.zeros(0, dtype=torch.int64)

    def aim(self, rows: Tensor) -> None:
        """Say which rows, ``[num_passed]`` int64, the next pass is for."""
        self._rows = rows

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Keep a layer's new keys and values, and return all that its queries may look at."""
        layer: Any = self._first.layers[layer_idx]
        if layer_idx == len(self._held):
            self._held.append(
                [new.new_zeros(self._num_rows, new.shape[1], 0, new.shape[3])
                 for new in (key_states, value_states)]
            )  # fmt: skip
        held = self._held[layer_idx]
        rows = self._rows.to(key_states.device)
        seen = []
        for at, (first, new) in enumerate(((layer.keys, key_states), (layer.values, value_states))):
            seen.append(torch.cat([first[rows], held[at][rows], new], dim=2))
            spread = new.new_zeros(self._num_rows, *new.shape[1:])
            spread[rows] = new
            held[at] = torch.cat([held[at], spread], dim=2)
        return seen[0], seen[1]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Zero: the caller gives positions and the mask."""
        return 0


class TwoPasses:
    """The passes of one batch of rows, from its prompts on.

    Parameters
    ----------
    model
        With full attention in every layer.
    threshold
        Positions go again whose probability is above it.
    soft_top
        Tokens of the mixture that a second pass is fed.
    num_rows
        Of the batch.
    """

    def __init__(
        self, model: Any, learned: Learned, *, threshold: float, soft_top: int, num_rows: int
    ) -> None:
        device = model.device
        self._model = model
        self._learned = learned._replace(
            decider={name: one.to(device) for name, one in learned.decider.items()},
            adapters={
                name: (a.to(device), b.to(device)) for name, (a, b) in learned.adapters.items()
            },
        )
        self._threshold, self._soft_top = threshold, soft_top
        self._cache_name = cache_argument(model.forward)
        self._first = DynamicCache()
        self._side = SideCache(self._first, num_rows)
        self._columns = 0
        # [num_rows, entries] bool: which entries of the side cache are a row's own
        self._own = torch.zeros(num_rows, 0, dtype=torch.bool)

    @torch.no_grad()
    def __call__(
        self,
        ids: Tensor,
        mask: Tensor | None,
        positions: Tensor,
        live: Tensor | None = None,
        *,
        keep: int = 1,
    ) -> tuple[Tensor, Tensor]:
        """Run the next columns.

        Parameters
        ----------
        ids, positions
            ``[num_rows, queries]`` int64.
        mask
            ``[num_rows, columns]``, 0 where a column, run before or now, is padding.
        live
            ``[num_rows]`` bool: rows that may go again.
        keep
            The last columns whose logits are wanted.

        Returns
        -------
        tuple of Tensor
            Logits ``[num_rows, keep, vocab]`` float32, and ``[num_rows, queries]`` bool: which
            positions went again.

        Raises
        ------
        UnsupportedError
            A second pass made numbers that are not finite.
        """
        queries = ids.shape[1]
        output = self._model(
            input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True,
            output_hidden_states=True, **{self._cache_name: self._first},
        )  # fmt: skip
        self._columns += queries
        states = [output.hidden_states[layer] for layer in self._learned.layers]
        chosen = decide(self._learned, output.logits, states).sigmoid() > self._threshold
        if mask is not None:
            chosen &= mask[:, -queries:].bool()
        if live is not None:
            chosen &= live[:, None]
        logits = output.logits[:, -keep:].to(torch.float32, copy=True)
        # Whether there is a second pass at all: a read by the host.
        if bool(chosen.any()):
            self._again(output.logits, chosen, mask, positions, logits)
        return logits, chosen

    def _again(
        self, first: Tensor, chosen: Tensor, mask: Tensor | None, positions: Tensor, logits: Tensor
    ) -> None:
        """The second pass, whose logits are added to ``logits`` in place."""
        rows = chosen.any(dim=1).nonzero()[:, 0]  # [num_passed]
        chosen = chosen[rows]
        most = int(chosen.sum(dim=1).max())
        # Those that are chosen, in order and at the end; what is before them fills rows with fewer.
        columns = chosen.int().argsort(dim=1, stable=True)[:, -most:]  # [num_passed, most]
        real = chosen.gather(1, columns)
        fed = self._mixtures(first[rows[:, None], columns])
        seen = self._seen(rows, columns, real, mask, first.shape[1], fed)
        self._side.aim(rows)
        with adapted(self._model, self._learned.adapters):
            output = self._model(
                inputs_embeds=fed, attention_mask=seen, use_cache=True,
                position_ids=positions[rows[:, None], columns], **{self._cache_name: self._side},
            )  # fmt: skip
        own = real.new_zeros(len(self._own), most)
        own[rows] = real
        self._own = torch.cat([self._own.to(own.device), own], dim=1)
        wanted = columns - (first.shape[1] - logits.shape[1])
        at = real & (wanted >= 0)
        # Also of those that are not wanted: later second passes see what made them.
        if not bool((output.logits[real] < torch.inf).all()):
            raise UnsupportedError(
                f"{FIELD}: got logits of a second pass that are not finite; allowed: LoRA whose"
                f" sums {fed.dtype} can hold in this model"
            )
        logits[rows[:, None].expand_as(columns)[at], wanted[at]] += output.logits[at].float()

    def _mixtures(self, logits: Tensor) -> Tensor:
        """What is fed, ``[num_passed, most, hidden]``."""
        embed = self._model.get_input_embeddings()
        values, ids = logits.topk(self._soft_top, dim=-1)
        shares = values.float().softmax(dim=-1)
        made = []
        for at in range(0, logits.shape[1], CHUNK):
            rows = embed(ids[:, at : at + CHUNK])  # [num_passed, chunk, soft_top, hidden]
            mixed = (shares[:, at : at + CHUNK, :, None].to(rows.device) * rows.float()).sum(dim=2)
            made.append(mixed.to(rows.dtype))
        return torch.cat(made, dim=1)

    def _seen(
        self,
        rows: Tensor,
        columns: Tensor,
        real: Tensor,
        mask: Tensor | None,
        queries: int,
        fed: Tensor,
    ) -> Tensor:
        """The mask of a second pass, ``[num_passed, 1, most, columns + entries + most]``."""
        place = columns + (self._columns - queries)
        keys = torch.arange(self._columns, device=columns.device)
        # What only fills a row sees something too, or its softmax would be of nothing.
        first = (keys <= place[:, :, None]) | ~real[:, :, None]
        if mask is not None:
            first &= mask[rows][:, None].bool()
        side = self._own.to(rows.device)[rows][:, None].expand(-1, columns.shape[1], -1)
        new = real[:, None] & (columns[:, None] <= columns[:, :, None])
        seen = torch.cat([first, side, new], dim=2)[:, None].to(fed.device)
        lowest = torch.finfo(fed.dtype).min
        return torch.zeros(seen.shape, dtype=fed.dtype, device=fed.device).masked_fill_(
            ~seen, lowest
        )


@contextmanager
def adapted(model: nn.Module, adapters: Mapping[str, tuple[Tensor, Tensor]]) -> Iterator[None]:
    """LoRA on modules of a model, for this thread's pass.

    Raises
    ------
    ProtocolError
        A module of them was not called.
    """
    thread, called = threading.get_ident(), set()

    def hook(name: str, a: Tensor, b: Tensor) -> Any:
        def add(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            if threading.get_ident() != thread:
                return None
            called.add(name)
            wide = torch.promote_types(output.dtype, torch.float32)
            low = F.linear(args[0].to(wide), a.to(output.device, wide))
            return (output.to(wide) + F.linear(low, b.to(output.device, wide))).to(output.dtype)

        return add

    handles = [
        model.get_submodule(name).register_forward_hook(hook(name, a, b))
        for name, (a, b) in adapters.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    if missing := sorted(adapters.keys() - called):
        raise ProtocolError(
            f"think_at_hard: got a forward pass that did not call {', '.join(missing[:4])};"
            " allowed: one that calls every module that its file has LoRA of"
        )
