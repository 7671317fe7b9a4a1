"""Steering by a vector: EAST (arXiv 2406.00244), and any other vector that is added to a layer.

While the model writes, ``beta * u`` is added to what one decoder layer leaves at the newest
position. EAST's ``u`` is the mean of a run's representations around its own mean, weighted by the
entropy of what the run did next (:func:`steering_vector`), so that ``beta`` above 0 makes the model
explore. The positions of the prompt stay as they are: the first that is shifted is that of the
first token. The paper shifts every position that is generated (``published``); here it is the
thinking's alone, unless ``where`` says otherwise. The form of the paper's normaliser is not known,
here it is the sum of the entropies.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tokenlens.core.columns import ALIVE, PHASE, Field, Phase, Value
from tokenlens.core.layer_access import SHIFT, SHIFT_FILE, SHIFT_LAYER
from tokenlens.core.method import Admission, Method
from tokenlens.core.rows import Rows
from tokenlens.methods import files
from tokenlens.methods.east.config import East
from tokenlens.spec import SpecError
from tokenlens.spec.needs import Need
from tokenlens.spec.registry import AnyMethod

VECTOR = "vector"
"""The tensor of the file, ``[hidden]``; its metadata says the ``layer``."""

BETA = Field("east.beta", "float", fixed=True)
THINKING = Field("east.thinking", "bool", fixed=True)
ANSWER = Field("east.answer", "bool", fixed=True)
SHIFTED = Field("east.shifted", "int")


def steering_vector(
    representations: Sequence[Tensor], entropies: Sequence[Tensor], *, eps: float = 1e-12
) -> Tensor:
    """EAST's vector, ``[hidden]`` float64.

    Parameters
    ----------
    representations
        Of each run ``[decisions, hidden]``: the layer's hidden state behind the last token of the
        prompt of a decision.
    entropies
        Of each run ``[decisions]`` nats: of the actions that were sampled there.
    """
    total, weight = torch.zeros(representations[0].shape[1], dtype=torch.float64), 0.0
    for states, entropy in zip(representations, entropies, strict=True):
        centred = states.double() - states.double().mean(dim=0)
        total += (entropy.double()[:, None] * centred).sum(dim=0)
        weight += float(entropy.double().sum())
    return total / max(weight, eps)


class EastMethod(Method):
    """Says how much of its vector the next forward pass is to add."""

    counters = {"shifted_steps": SHIFTED}  # noqa: RUF012 (a ClassVar of the base)

    def __init__(self) -> None:
        super().__init__("east", BETA, THINKING, ANSWER, SHIFTED)

    def admit(self, config: AnyMethod, admission: Admission) -> Mapping[Field, Value]:
        assert isinstance(config, East)
        file = files.find("east.file", config.file)
        shape = admission.shape
        vector = files.tensor_of(
            file, "east.file", VECTOR, (None if shape is None else shape.hidden_size,)
        )
        layer = _layer(config, file, None if shape is None else shape.num_layers)
        largest = float(vector.abs().max()) * abs(config.beta)
        if not largest <= torch.finfo(torch.float32).max:
            raise SpecError.of(
                "east.beta", config.beta, "one whose product with the vector is finite"
            )
        return {
            SHIFT_LAYER: layer,
            SHIFT_FILE: file.number,
            BETA: config.beta,
            THINKING: config.where != "answer",
            ANSWER: config.where != "thinking",
        }

    def needs(self, config: AnyMethod) -> Need:
        return Need.LAYER_SHIFT

    def commit(self, rows: Rows, before: Tensor, sampled: Tensor) -> None:
        thinking, answer = rows[THINKING], rows[ANSWER]
        # All includes what is written before any thinking.
        here = (thinking & (rows.thinking | answer)) | (answer & (rows[PHASE] == int(Phase.ANSWER)))
        here = rows[self.on] & here & rows[ALIVE]
        rows[SHIFT] = torch.where(here, rows[BETA], 0.0)
        rows.add(SHIFTED, here)


def refuse_overflow(columns: Mapping[Field, Value], dtype: torch.dtype) -> None:
    """Refuse a shift that a model's dtype cannot hold.

    Raises
    ------
    SpecError
    """
    file, beta = columns[SHIFT_FILE], columns.get(BETA)
    assert isinstance(file, int)
    if not isinstance(beta, (int, float)):
        return  # another method's, whose sums the layer's seat looks at
    largest = float(files.numbered(file).tensors[VECTOR].abs().max()) * abs(beta)
    if largest > torch.finfo(dtype).max / 4:
        raise SpecError.of("east.beta", beta, f"one whose shift {dtype} can hold with this vector")


def layer_of(file: files.OperatorFile) -> int | None:
    """The layer that a file says it is of, ``None`` if it says none.

    Raises
    ------
    SpecError
        It says no number.
    """
    said = file.about.get("layer")
    if said is None:
        return None
    if not (said.isascii() and said.isdigit() and len(said) < 5):
        raise SpecError.of(
            "east.file", f"{file.name} with layer {said!r}", "a file whose layer is a number"
        )
    return int(said)


def _layer(config: East, file: files.OperatorFile, num_layers: int | None) -> int:
    """The layer that the spec and the file agree on, inside of the model."""
    own = layer_of(file)
    layer = own if config.layer is None else config.layer
    if layer is None:
        raise SpecError.of(
            "east.layer", None, f"a layer: the file {file.name} does not say its own"
        )
    if own is not None and own != layer:
        raise SpecError.of("east.layer", layer, f"{own}, the layer that the file {file.name} is of")
    if layer < 1 or (num_layers is not None and layer > num_layers):
        raise SpecError.of("east.layer", layer, f"1 to {num_layers}, the layers of this model")
    return layer


STEPS = (EastMethod(),)
