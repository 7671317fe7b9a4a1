"""Files of an operator's on a server: which layers they want, and what does not fit. No engine."""

from collections.abc import Mapping

import torch

from tokenlens.core import Request
from tokenlens.core.layer_access import SHIFT_FILE, SHIFT_LAYER, ModelShape
from tokenlens.errors import SpecError
from tokenlens.methods import files
from tokenlens.methods.east.step import VECTOR, layer_of, refuse_overflow
from tokenlens.serving.refusals import allows_layer_states, allows_shifts
from tokenlens.serving.settings import Settings
from tokenlens.spec.needs import Need

PREDICTOR = "cls"
"""A tensor of files whose method reads all layers."""


def seated_layers(settings: Settings) -> Mapping[str, int]:
    """Files that hold a vector, and the layer that each is of, which has to have a seat.

    The files have been read. One that does not say its layer has none: requests may not name it,
    because where they would want it is known only when graphs have been captured.
    """
    if not allows_shifts(settings):
        return {}
    found = {name: files.find("files", name) for name in settings.files}
    layers = {name: layer_of(file) for name, file in found.items() if VECTOR in file.tensors}
    return {name: layer for name, layer in layers.items() if layer is not None}


def check_files(settings: Settings, shape: ModelShape) -> None:
    """Refuse a start with vectors that do not fit the model.

    Raises
    ------
    SpecError
        Names the file, and what is wrong with it.
    """
    for name, layer in seated_layers(settings).items():
        field = f"files.{name}"
        files.tensor_of(files.find(field, name), field, VECTOR, (shape.hidden_size,))
        if not 1 <= layer <= shape.num_layers:
            allowed = f"layer 1 to {shape.num_layers} of this model in its metadata"
            raise SpecError.of(field, f"layer {layer}", allowed)


def check_seats(request: Request, settings: Settings, dtype: torch.dtype) -> None:
    """Refuse a request whose vector has no seat, or is too large for the model's dtype.

    Raises
    ------
    SpecError
        Or one that reads layers where none is read.
    """
    if Need.LAYER_STATES in request.needs and not reads_layers(settings):
        raise SpecError.of(
            "methods",
            ", ".join(sorted(request.methods)),
            "one that reads no layers: no file for such a method was allowed when this server"
            " started",
        )
    if Need.LAYER_SHIFT not in request.needs:
        return
    number = request.columns[SHIFT_FILE]
    assert isinstance(number, int)
    seated = seated_layers(settings)
    name = files.numbered(number).name
    if seated.get(name) != request.columns[SHIFT_LAYER]:
        allowed = ", ".join(f"{one} behind layer {layer}" for one, layer in seated.items())
        raise SpecError.of(
            "east.file",
            name,
            f"a file that was allowed when this server started and whose metadata says its layer"
            f" ({allowed or 'none'}): a layer is given its seat before graphs are captured",
        )
    refuse_overflow(request.columns, dtype)


def reads_layers(settings: Settings) -> bool:
    """Whether layers have to be read, by what the files hold; they have been read."""
    return allows_layer_states(settings) and any(
        PREDICTOR in files.find("files", name).tensors for name in settings.files
    )
