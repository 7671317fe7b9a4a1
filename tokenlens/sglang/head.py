"""SGLang's language-model head, watched: its input is the last hidden state of the sampled rows.

The head is called inside of the captured decode graph, so that its input is copied into a buffer at
a fixed address, and the copy is replayed. Where input log-probabilities are asked for, rows stand
in front of the head that are not sampled: the place that prunes them says which are.
"""

import functools
from typing import Any

import torch
from torch import Tensor, nn

from tokenlens.serving.engine_vectors import rows_of

PRUNED, SAMPLED = 0, 3
"""Places in what ``_get_pruned_states`` returns: the rows, and which of them are sampled."""


class HeadBuffer:
    """The head of one model; see :class:`tokenlens.serving.engine_vectors.HeadWatch`.

    Parameters
    ----------
    max_rows
        The most requests of a batch. Rows of a graph behind these are padding.
    """

    def __init__(self, processor: Any, head: Any, table: Tensor, max_rows: int) -> None:
        self.width = int(head.embedding_dim)
        self._head = head
        # [max_rows, hidden], written by captured graphs: never replaced
        self._rows = torch.zeros(max_rows, self.width, dtype=table.dtype, device=table.device)
        self._wanted = 0
        # Rows that were seen of this pass; a graph that is replayed does not count them.
        self._seen: int | None = None
        prune = processor._get_pruned_states

        @functools.wraps(prune)
        def pruned(*args: Any, **kwargs: Any) -> Any:
            found = prune(*args, **kwargs)
            self._look(found[PRUNED], found[SAMPLED])
            return found

        processor._get_pruned_states = pruned

    def weight(self) -> Tensor | None:
        """The rows of the head's shard."""
        return rows_of(self._head)

    def arm(self, num_rows: int) -> None:
        """Keep the rows of the next pass."""
        self._wanted, self._seen = num_rows, None

    def _look(self, states: Tensor, sampled: Tensor | None) -> None:
        captures = states.is_cuda and torch.cuda.is_current_stream_capturing()
        if not captures and (not self._wanted or self._seen is not None):
            return
        rows = states if sampled is None else states[sampled]
        number = min(len(rows), len(self._rows))
        self._rows[:number].copy_(rows[:number])
        self._seen = None if captures else len(rows)

    def rows(self) -> Tensor:
        """``[num_rows, hidden]``."""
        is_eager = not self._rows.is_cuda
        if self._wanted > len(self._rows) or (is_eager and self._seen != self._wanted):
            raise RuntimeError(
                f"hidden states: got {self._seen} rows at the model's head; allowed: the"
                f" {self._wanted} of this step"
            )
        return self._rows[: self._wanted]


def head_of(model: nn.Module, table: nn.Module, max_rows: int) -> HeadBuffer | None:
    """What watches a model's head; ``None`` if it has not exactly one."""
    from sglang.srt.layers.logits_processor import LogitsProcessor
    from sglang.srt.layers.vocab_parallel_embedding import ParallelLMHead

    modules = list(model.modules())
    processors = [one for one in modules if isinstance(one, LogitsProcessor)]
    heads = [one for one in modules if isinstance(one, ParallelLMHead)] or [table]
    weight = table.weight
    if len(processors) != 1 or len(heads) != 1 or not isinstance(weight, Tensor):
        return None
    return HeadBuffer(processors[0], heads[0], weight, max_rows)


def scale_of(model: nn.Module, table: nn.Module) -> float | None:
    """What the model multiplies looked-up embeddings by, where transformers does so in the module.

    ``None``: it is a model of such a family, and does not say it.
    """
    own = getattr(table, "embed_scale", None)
    if own is not None:
        return float(own)
    family, config = type(model).__name__, getattr(model, "config", None)
    if family in ("GemmaForCausalLM", "Gemma2ForCausalLM"):
        scale = torch.tensor(float(config.hidden_size) ** 0.5)  # type: ignore[union-attr]
        # The second rounds it to the type of its parameters.
        return float(scale if family.startswith("GemmaF") else scale.to(table.weight.dtype))  # type: ignore[arg-type]
    if "MiniCPM3" in family:
        return float(config.scale_emb)  # type: ignore[union-attr, arg-type]
    return None if "gemma" in family.lower() else 1.0
