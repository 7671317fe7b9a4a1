"""What a method may read and write between a model's decoder layers. Knows no engine.

Layers are counted as everybody counts hidden states: 0 is what the embedding leaves, ``n`` what the
n-th decoder layer leaves, and the last one has gone through the final norm where it is read.
"""

from typing import NamedTuple, Protocol

from torch import Tensor

from tokenlens.core.columns import Field
from tokenlens.spec.needs import Need

SHIFT = Field("layer.shift", "float")
"""How much of the row's vector is added in the forward pass that reads its next input."""
SHIFT_LAYER = Field("layer.shift_layer", "int", fixed=True)
"""Behind which decoder layer, from 1."""
SHIFT_FILE = Field("layer.shift_file", "int", -1, fixed=True)
"""Whose vector: the number of an operator's file (:mod:`tokenlens.methods.files`)."""
ROWS_FILE = Field("layer.rows_file", "int", -1, fixed=True)
"""Whose rows stand in the prompt, each at a place of the placeholder, in order."""
ROW_VARIANT = Field("layer.row_variant", "int", fixed=True)
ROW_PLACEHOLDER = Field("layer.row_placeholder", "int", -1, fixed=True)
FIELDS = (SHIFT, SHIFT_LAYER, SHIFT_FILE, ROWS_FILE, ROW_VARIANT, ROW_PLACEHOLDER)


class ModelShape(NamedTuple):
    """What a file of vectors has to fit."""

    hidden_size: int
    num_layers: int


class LayerAccess(Protocol):
    """An engine's way to its layers. ``hosts``: those of ``Need.OF_LAYERS`` that it can serve.

    A shift is not asked for: the engine reads the columns above once a step, and adds
    ``SHIFT * vector`` to the last position of the rows in which it is not 0.
    """

    hosts: Need

    def states(self) -> Tensor:
        """``[num_rows, layers + 1, hidden]`` float32, behind this step's logits."""

    def prompt_state(self) -> Tensor | None:
        """``[num_rows, hidden]`` float32: the last hidden states, where a prompt may have ended.

        ``None`` in a step in which no row decides on its first token.
        """
