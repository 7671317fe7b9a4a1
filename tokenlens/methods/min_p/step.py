"""min-p (arXiv 2407.01082): ``p >= min_p * p_max`` at a temperature of its own."""

from collections.abc import Mapping

import torch
from torch import Tensor

from tokenlens.core.columns import Field, Value
from tokenlens.core.method import Admission
from tokenlens.core.rows import Rows
from tokenlens.methods._shared.truncation import TruncationMethod
from tokenlens.methods.min_p.config import MAX_TOKENS_TO_KEEP, MinP
from tokenlens.spec.registry import AnyMethod


def min_p_keep(logits: Tensor, min_p: Tensor, temperature: Tensor, least: Tensor) -> Tensor:
    """What min-p keeps, ``[num_rows, vocab]`` bool.

    Parameters
    ----------
    logits
        ``[num_rows, vocab]``.
    min_p, temperature, least
        ``[num_rows]``; ``least`` tokens are kept at least, int64 up to ``MAX_TOKENS_TO_KEEP``.
    """
    p = torch.softmax(logits.float() / temperature[:, None], dim=1)
    keep = p >= (min_p * p.amax(dim=1))[:, None]
    best = logits.topk(min(MAX_TOKENS_TO_KEEP, logits.shape[1]), dim=1).indices
    among = torch.arange(best.shape[1], device=best.device) < least[:, None]
    return keep.scatter(1, best, keep.gather(1, best) | among)


class MinPMethod(TruncationMethod):
    """min-p."""

    MIN_P = Field("min_p.min_p", "float")
    TEMPERATURE = Field("min_p.temperature", "float", 1.0)
    LEAST = Field("min_p.min_tokens_to_keep", "int", 1)

    def __init__(self) -> None:
        super().__init__("min_p", self.MIN_P, self.TEMPERATURE, self.LEAST)

    def admit(self, config: AnyMethod, admission: Admission) -> Mapping[Field, Value]:
        assert isinstance(config, MinP)
        return {
            **super().admit(config, admission),
            self.MIN_P: config.min_p,
            self.TEMPERATURE: config.temperature,
            self.LEAST: config.min_tokens_to_keep,
        }

    def keep(self, logits: Tensor, rows: Rows) -> Tensor:
        return min_p_keep(logits, rows[self.MIN_P], rows[self.TEMPERATURE], rows[self.LEAST])


STEPS = (MinPMethod(),)
