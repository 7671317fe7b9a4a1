"""Learned rows in a prompt: SoftCoT++ (arXiv 2505.11484), ConciseHint-T (arXiv 2506.18810).

SoftCoT++: an assistant model reads its own prompt, at whose last places one of N learned tokens
stands; its last hidden states there, mapped to the width of the model, are fed at placeholders of
the model's prompt. That gives N prompts, which differ in these rows alone, and the answers vote
(:func:`projected` makes the rows; a file of theirs is ``[N, rows, hidden]``). ConciseHint-T feeds
the rows that it has learned in its hint (``[rows, hidden]``). Placeholders are found by their id,
where the reference counts places from the end of its template.
"""

from collections.abc import Mapping

from torch import Tensor

from tokenlens.core.columns import Field, Value
from tokenlens.core.layer_access import ROW_PLACEHOLDER, ROW_VARIANT, ROWS_FILE
from tokenlens.core.method import Admission, Method
from tokenlens.methods import files
from tokenlens.methods._shared.exempt import one_token
from tokenlens.methods.softcotpp.config import SoftCotPP
from tokenlens.spec import SpecError
from tokenlens.spec.registry import AnyMethod

ROWS = "rows"
"""The tensor of the file, ``[rows, hidden]`` or ``[variants, rows, hidden]``."""


def projected(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """An assistant's hidden states as rows of a prompt, ``[rows, hidden]``.

    Parameters
    ----------
    hidden
        ``[rows, assistant's hidden]``: its last hidden states at its placeholders.
    weight, bias
        ``[hidden, assistant's hidden]``, ``[hidden]``.
    """
    return hidden @ weight.T + bias


def variant_of(rows: Tensor, variant: int) -> Tensor:
    """One set of rows, ``[rows, hidden]``."""
    return rows if rows.dim() == 2 else rows[variant]


class SoftCotPPMethod(Method):
    """Says which rows stand at which token; the engine feeds them with the prompt."""

    def __init__(self) -> None:
        super().__init__("softcotpp")

    def admit(self, config: AnyMethod, admission: Admission) -> Mapping[Field, Value]:
        assert isinstance(config, SoftCotPP)
        file = files.find("softcotpp.file", config.file)
        hidden = None if admission.shape is None else admission.shape.hidden_size
        several = file.tensors[ROWS].dim() == 3 if ROWS in file.tensors else False
        shape = (None, None, hidden) if several else (None, hidden)
        rows = files.tensor_of(file, "softcotpp.file", ROWS, shape)
        if 0 in rows.shape:
            raise SpecError.of("softcotpp.file", f"{file.name} with no rows", "a file with some")
        number = len(rows) if several else 1
        if config.variant >= number:
            allowed = f"0 to {number - 1}, the sets of rows of the file {file.name}"
            raise SpecError.of("softcotpp.variant", config.variant, allowed)
        return {
            ROWS_FILE: file.number,
            ROW_PLACEHOLDER: one_token(config.placeholder, admission, "softcotpp.placeholder"),
            ROW_VARIANT: config.variant,
        }


STEPS = (SoftCotPPMethod(),)
