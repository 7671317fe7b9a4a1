"""The prompts of a call: which tokens they have, and how long they are."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from tokenlens.errors import UnsupportedError


@dataclass(frozen=True)
class Prompts:
    """What a ``generate()`` call says of its prompts beside their ids.

    Attributes
    ----------
    attention_mask
        ``[num_rows, prompt]``; ``None`` where it hides nothing.
    embedded_length
        Tokens of prompts that came as embeddings, padding included.
    """

    attention_mask: Tensor | None
    embedded_length: int | None


def prompts_of(
    asked: Prompts, input_ids: Tensor, given: Sequence[Sequence[int]] | None = None
) -> list[tuple[list[int], int]]:
    """Each row's prompt without padding, and its length (which embeddings do not show).

    Parameters
    ----------
    input_ids
        ``[num_rows, prompt]``; an empty one where prompts came as embeddings.
    given
        Each prompt's tokens, as the user says.

    Raises
    ------
    UnsupportedError
        ``given`` is of another number of prompts.
    """
    num_rows, width = input_ids.shape
    mask, ids = asked.attention_mask, input_ids.tolist()
    lengths = [asked.embedded_length or width] * num_rows
    if mask is not None and mask.ndim == 2 and len(mask) == num_rows:
        lengths = mask.sum(dim=1).tolist()
        if mask.shape[1] == width:
            keep = mask.tolist()
            ids = [[t for t, kept in zip(row, seen) if kept] for row, seen in zip(ids, keep)]
    if given is not None:
        if not given or num_rows % len(given):
            raise UnsupportedError(
                f"prompt_ids: got {len(given)} prompts; allowed: one for each prompt of this call"
            )
        samples = num_rows // len(given)
        ids = [[int(token) for token in given[row // samples]] for row in range(num_rows)]
    return [(row, int(length)) for row, length in zip(ids, lengths)]
