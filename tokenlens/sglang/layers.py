"""What SGLang's decoder layers leave, for a vector that is added there.

Most of its models leave a contribution whose sum over ranks, and whose addition to the residual,
is owed to the next stage (``layers/layer_boundary``). The sum is completed here, as SGLang's own
``add_to_output`` does; the addition stays owed. Knows no requests.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from tokenlens.errors import UnsupportedError
from tokenlens.serving.layer_shifts import as_returned

WAY_OUT = (
    " Leave files with vectors and predictors out of the setting files, and requests with their"
    " methods are refused."
)


def check_layers(layers: Sequence[nn.Module], num_ranks: int) -> None:
    """Refuse a start with decoder layers of which it is not known what they leave.

    Parameters
    ----------
    layers
        Those that get a seat.
    num_ranks
        Of tensor parallel.

    Raises
    ------
    UnsupportedError
        The next stage does something else with what one leaves than to add it to the residual, or
        it may be a part of a sum over ranks, and the layer does not say so.
    """
    for layer in layers:
        stages = list(_stages(layer))
        kind = type(layer).__name__
        if stages and not _is_added(stages[-1]):
            raise UnsupportedError(
                f"model: got {kind}, whose output is changed before it is added to the residual;"
                " allowed: decoder layers whose output is added as it is, where a file is for what"
                f" they leave.{WAY_OUT}"
            )
        owes = any(getattr(one, "reduce_results", True) is False for one in layer.modules())
        if not stages and owes and num_ranks > 1:
            raise UnsupportedError(
                f"tp_size: got {num_ranks} with {kind}, which does not say what it owes to the next"
                f" layer; allowed: 1, where a file is for what decoder layers leave.{WAY_OUT}"
            )


def _stages(layer: nn.Module) -> Iterator[Any]:
    """What a layer declares of its stages, in order."""
    for one in vars(layer).values():
        declared = getattr(one, "declaration", None)
        if declared is not None and hasattr(declared, "update"):
            yield declared


def _is_added(stage: Any) -> bool:
    update = stage.update
    return bool(update.is_plain_add or update.applied_at_exit)


def completed(
    output: Any, args: tuple[Any, ...], named: Mapping[str, Any]
) -> tuple[Any, Tensor, Tensor | None]:
    """See :data:`tokenlens.serving.layer_shifts.Completed`."""
    streams = (getattr(one, "residual_stream", None) for one in (*args, *named.values()))
    stream = next((one for one in streams if one is not None), None)
    if stream is None:
        return as_returned(output, args, named)
    states = stream.complete(output)
    return states, states, stream.residual if stream.pending is not None else None


def leaves_sums(model: Any) -> bool:
    """Whether SGLang itself takes a layer's output plus its residual for what it leaves."""
    return any(hasattr(one, "layers_to_capture") for one in model.modules())
