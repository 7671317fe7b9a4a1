"""Compiles the kernels that an engine will launch, before its first request waits for them.

Does not know engines: they say which sizes they will use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .concept_embedding import concept_embedding
from .concept_mixture import concept_mixture
from .dense_mixture import dense_mixture
from .logit_edit import logit_edit
from .signals_topk import signals_topk

if TYPE_CHECKING:
    from collections.abc import Sequence


def warm_up(
    device: torch.device | str,
    *,
    vocab_size: int,
    hidden: int,
    table_dtype: torch.dtype,
    logit_dtypes: Sequence[torch.dtype] = (torch.float32,),
    logit_columns: int | None = None,
    widths: Sequence[int] = (16,),
    dense: bool = False,
) -> None:
    """Run every op once at small batch sizes; on a CPU this does nothing.

    Kernels are specialised on dtypes, on whether the logits' row stride and the hidden size are
    multiples of 16, and on the powers of two above the width and the vocabulary. Batch sizes,
    shards and exact vocabularies are not compiled for.

    Parameters
    ----------
    device : torch.device or str
        The device that the engine decodes on.
    vocab_size, hidden : int
        Of the model.
    table_dtype : torch.dtype
        Of the embedding table.
    logit_dtypes : sequence of torch.dtype
        Of the logits that the engine hands over.
    logit_columns : int or None
        Row stride of those logits, ``vocab_size`` if None.
    widths : sequence of int
        Values of ``width`` that will be used.
    dense : bool
        Whether `dense_mixture` will be used.
    """
    device = torch.device(device)
    if device.type == "cpu":
        return
    columns = logit_columns or vocab_size
    # Rows of the table are read by id: a small table stands for a shard.
    table = torch.zeros((max(widths), hidden), dtype=table_dtype, device=device)
    rows = torch.zeros(2, dtype=torch.int64, device=device)
    ones = torch.ones(2, device=device)
    active = torch.tensor([True, False], device=device)
    for dtype in logit_dtypes:
        logits = torch.zeros((2, columns), dtype=dtype, device=device)
        for width in widths:
            signals = signals_topk(
                logits,
                active=active,
                inverse_temperature=ones,
                top_k=rows,
                top_p=ones,
                min_p=ones,
                max_entries=rows + 1,
                noise_temperature=ones,
                seed=rows,
                position=rows,
                vocab_size=vocab_size,
                width=min(width, vocab_size),
            )
            for out_dtype in (table_dtype, torch.float32):
                concept_mixture(table, signals.weight_ids, signals.weights, out_dtype=out_dtype)
                concept_embedding(
                    rows, rows - 1, signals.weight_ids, signals.weights, table, out_dtype=out_dtype
                )
        if dense:
            dense_mixture(
                logits,
                table,
                active=active,
                inverse_temperature=ones,
                vocab_size=vocab_size,
            )
        logit_edit(
            logits,
            slots=rows,
            edit_ids=rows.view(2, 1),
            edit_deltas=ones.view(2, 1),
            edit_counts=rows + 1,
            forced_ids=rows - 1,
            vocab_size=vocab_size,
        )
    torch.accelerator.synchronize(device)
