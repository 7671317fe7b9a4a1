"""vLLM's language-model head, watched: its input is the last hidden state of the sampled rows.

The head's own module is never called, and some models norm inside ``compute_logits``, so that a
hook in front of the ``LogitsProcessor`` is the one place that sees the head's input. Later calls of
a step are prompt log-probabilities.
"""

from typing import Any

from torch import Tensor, nn

from tokenlens.serving.engine_vectors import rows_of


class HeadInput:
    """The head of one model; see :class:`tokenlens.serving.engine_vectors.HeadWatch`."""

    def __init__(self, processor: nn.Module, head: Any, width: int) -> None:
        self.width = width
        self._head = head
        self._wanted = 0
        self._rows: Tensor | None = None
        processor.register_forward_pre_hook(self._look)

    def weight(self) -> Tensor | None:
        """The rows of the head's shard."""
        return rows_of(self._head)

    def arm(self, num_rows: int) -> None:
        """Keep what the next call is given."""
        self._wanted, self._rows = num_rows, None

    def _look(self, module: nn.Module, args: Any) -> None:
        if self._wanted and self._rows is None:
            # A copy already: advanced indexing has chosen the sampled rows.
            self._rows = args[1]

    def rows(self) -> Tensor:
        """``[num_rows, hidden]``."""
        if self._rows is None or len(self._rows) != self._wanted:
            found = "none" if self._rows is None else f"{len(self._rows)} rows"
            raise RuntimeError(
                f"hidden states: got {found} at the model's head; allowed: the {self._wanted} of"
                " this step"
            )
        return self._rows


def head_of(model: nn.Module, table: nn.Module) -> HeadInput | None:
    """What watches a model's head; ``None`` if it has not exactly one."""
    from vllm.model_executor.layers.logits_processor import LogitsProcessor
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    modules = dict(model.named_modules())
    processors = [name for name, one in modules.items() if isinstance(one, LogitsProcessor)]
    heads = [one for one in modules.values() if isinstance(one, ParallelLMHead)] or [table]
    if len(processors) != 1 or len(heads) != 1:
        return None
    # An adapter's stands in front of the model's own and does not call it.
    outer = processors[0].removesuffix(".base_layer")
    return HeadInput(modules[outer], heads[0], int(heads[0].embedding_dim))


def scale_of(model: nn.Module, table: nn.Module) -> float | None:
    """What the model multiplies looked-up embeddings by, where transformers does so in the module.

    ``None``: it is a model of such a family, and does not say it. Multipliers that transformers
    applies behind its embedding as well (Granite's) scale what is fed there too, and are no matter.
    """
    name = next(name for name, one in model.named_modules() if one is table)
    owner: Any = model.get_submodule(name.removesuffix(".base_layer").rpartition(".")[0])
    family = type(model).__name__.lower()
    for attribute in ("normalizer", "embed_scale"):
        found = getattr(owner, attribute, None)
        if found is not None:
            return float(found)
    if "minicpm3" in family:
        return float(owner.config.scale_emb)
    return None if "gemma" in family else 1.0
