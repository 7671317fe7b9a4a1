"""A Hugging Face model's decoder layers: read, and shifted, during one forward pass.

A layer is given a subclass of its own class for the time of the pass. A hook that comes after a
graph was compiled never fires; a layer of another class is traced anew, and the graphs of passes
without us stay what they are. Knows nothing of decoding.
"""

import functools
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tokenlens.core import Core, Request
from tokenlens.core.layer_access import (
    ROW_PLACEHOLDER,
    ROW_VARIANT,
    ROWS_FILE,
    SHIFT,
    SHIFT_FILE,
    SHIFT_LAYER,
    ModelShape,
)
from tokenlens.errors import ProtocolError, SpecError, UnsupportedError
from tokenlens.methods import files
from tokenlens.methods.east.step import VECTOR, refuse_overflow
from tokenlens.methods.softcotpp.step import ROWS, variant_of
from tokenlens.spec.needs import Need

SEATS = "_tokenlens_seats"
"""Attribute of a layer that is looked at: by thread, what is done there."""
NEWEST = "_tokenlens_seat"
"""The last one, for a graph, which knows no threads."""


class Seat:
    """What is done at one module in one forward pass.

    Attributes
    ----------
    reads
        ``"input"`` or ``"output"``: what to keep of the last position.
    found
        ``[num_rows, hidden]``: what was kept.
    shift, active
        ``[num_rows, hidden]`` float32 and ``[num_rows]`` bool: what is added to the output.
    placed
        ``[n]`` rows and ``[n]`` columns of the output, and ``[n, hidden]``: what is fed there.
    here
        Whether a pass that is no graph is the one that was meant; ``None``: it is.
    """

    def __init__(self, here: Callable[[], bool] | None = None) -> None:
        self.here = here
        self.reads: str | None = None
        self.found: Tensor | None = None
        self.shift: Tensor | None = None
        self.active: Tensor | None = None
        self.placed: tuple[Tensor, Tensor, Tensor] | None = None

    def passed(self, given: Any, output: Any) -> Any:
        """Look at a call of the module; returns its output."""
        states = output[0] if isinstance(output, tuple) else output
        if states.dim() != 3:
            raise UnsupportedError(
                f"model: got a decoder layer that leaves {states.dim()} dimensions; allowed: three"
                " (rows, positions, width), of which the last position is read or shifted"
            )
        if self.reads == "input":
            self.found = given[:, -1]
        elif self.reads == "output":
            self.found = states[:, -1]
        if self.placed is not None:
            rows, columns, vectors = (one.to(states.device) for one in self.placed)
            return states.index_put((rows, columns), vectors.to(states.dtype))
        if self.shift is None or self.active is None or states.shape[1] != 1:
            return output
        moved = shifted(states, self.shift, self.active)
        return (moved, *output[1:]) if isinstance(output, tuple) else moved


def shifted(states: Tensor, shift: Tensor, active: Tensor) -> Tensor:
    """``[num_rows, 1, hidden]`` with the shift added in active rows, all others bit for bit.

    A row that the sum makes infinite stays as it was.
    """
    moved = (states.float() + shift.to(states.device)[:, None]).to(states.dtype)
    sound = moved.isfinite().all(dim=2, keepdim=True)
    return torch.where(active.to(states.device)[:, None, None] & sound, moved, states)


@functools.cache
def _seated(kind: Any) -> type[nn.Module]:
    """A subclass whose calls pass by the calling thread's seat."""

    class Seated(kind):  # type: ignore[misc]  # the base is the model's
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            output = super().__call__(*args, **kwargs)
            if torch.compiler.is_compiling():
                seat = self.__dict__[NEWEST]
            else:
                seat = self.__dict__[SEATS].get(threading.get_ident())
                if seat is None or (seat.here is not None and not seat.here()):
                    return output
            given = args[0] if args else kwargs.get("hidden_states", kwargs.get("input"))
            return seat.passed(given, output)

    Seated.__name__, Seated.__qualname__ = kind.__name__, kind.__qualname__
    Seated.__module__ = kind.__module__
    return Seated


_GUARD = threading.RLock()


class Layers:
    """The decoder layers of one model, for one ``generate()`` call; see ``LayerAccess``.

    Parameters
    ----------
    needs
        Of some request. Where layers are read, each is looked at, from the prompt on.
    """

    hosts = Need.OF_LAYERS

    def __init__(self, model: nn.Module, needs: Need) -> None:
        self._layers = decoder_layers(model)
        self._dtype = next(model.parameters()).dtype
        self._head: nn.Module | None = model.get_output_embeddings()  # type: ignore[operator]
        self._reads = Need.LAYER_STATES in needs
        self._reads_prompt = Need.PROMPT_STATE in needs
        if (self._reads or self._reads_prompt) and self._head is None:
            raise UnsupportedError("model: got one without an output embedding; allowed: one with")
        self._thread = 0
        self._sat: dict[nn.Module, Seat] = {}
        self._last: list[Seat] = []
        self._prompt: Seat | None = None
        self._embedding: nn.Module = model.get_input_embeddings()  # type: ignore[operator]
        self._placed: tuple[Tensor, Tensor, Tensor] | None = None
        # By layer, from 1: [num_rows, hidden] float32 and [num_rows] bool
        self._shifts: dict[int, tuple[Tensor, Tensor]] = {}

    def begin(self, requests: Sequence[Request], device: torch.device) -> None:
        """The requests of the call's rows are known.

        Raises
        ------
        SpecError
            A shift that the model's dtype cannot hold.
        """
        rows: dict[int, list[tuple[int, Tensor]]] = {}
        for row, request in enumerate(requests):
            if Need.LAYER_SHIFT in request.needs:
                columns: Mapping[Any, Any] = request.columns
                vector = files.numbered(columns[SHIFT_FILE]).tensors[VECTOR]
                refuse_overflow(columns, self._dtype)
                rows.setdefault(columns[SHIFT_LAYER], []).append((row, vector))
        for layer, wanted in rows.items():
            vectors = torch.zeros(len(requests), len(wanted[0][1]))
            has = torch.zeros(len(requests), dtype=torch.bool)
            for row, vector in wanted:
                vectors[row], has[row] = vector, True
            self._shifts[layer] = vectors.to(device), has.to(device)

    def place(self, requests: Sequence[Request], ids: Tensor | None) -> None:
        """Find where rows of the requests' files stand in the prompts, before the first pass.

        Parameters
        ----------
        ids
            ``[num_rows, tokens]``: what the pass will embed.

        Raises
        ------
        SpecError
            A prompt has another number of placeholders than the file has rows.
        UnsupportedError
            The prompts come as embeddings.
        """
        places, vectors = [], []
        for row, request in enumerate(requests):
            if Need.PROMPT_ROWS not in request.needs:
                continue
            if ids is None:
                raise UnsupportedError(
                    "inputs_embeds: got prompts as embeddings; allowed: input_ids with softcotpp,"
                    " whose rows stand at tokens of the prompt"
                )
            columns: Mapping[Any, Any] = request.columns
            rows = files.numbered(columns[ROWS_FILE]).tensors[ROWS]
            rows = variant_of(rows, columns[ROW_VARIANT])
            here = (ids[row] == columns[ROW_PLACEHOLDER]).nonzero()[:, 0].tolist()
            if len(here) != len(rows):
                raise SpecError.of(
                    "softcotpp.placeholder",
                    f"a prompt with {len(here)} of them",
                    f"as many as the file has rows: {len(rows)}",
                )
            places += [(row, column) for column in here]
            vectors.append(rows)
        if places:
            at = torch.tensor(places)
            self._placed = at[:, 0], at[:, 1], torch.cat(vectors)

    @torch.no_grad()
    def arm(self, core: Core | None, here: Callable[[], bool] | None = None) -> None:
        """Sit down at the layers for the next forward pass.

        Parameters
        ----------
        core
            ``None`` before the first logits.
        here
            For passes whose end nobody tells us of: whether one is still the call's.
        """
        self.disarm()
        seats: defaultdict[nn.Module, Seat] = defaultdict(lambda: Seat(here))
        if self._reads:
            for one in self._layers:
                seats[one].reads = "input"
            assert self._head is not None
            seats[self._head].reads = "input"
            self._last = [seats[one] for one in (*self._layers, self._head)]
        self._prompt = None
        if core is None and self._placed is not None:
            seats[self._embedding].placed = self._placed
        if self._reads_prompt and core is None:
            assert self._head is not None
            self._prompt = seats[self._head]
            self._prompt.reads = "input"
        if core is not None:
            # [slots]: the rows of a call are its slots
            shift = core.table.column(SHIFT)
            for layer, (vectors, has) in self._shifts.items():
                seat = seats[self._layers[layer - 1]]
                beta = shift[: len(vectors)]
                seat.shift, seat.active = beta[:, None] * vectors, has & (beta != 0)
        with _GUARD:
            self._thread = threading.get_ident()
            for module, seat in seats.items():
                sitting = module.__dict__.setdefault(SEATS, {})
                if not sitting:
                    kind: Any = type(module)
                    module.__class__ = _seated(kind)
                sitting[self._thread] = module.__dict__[NEWEST] = seat
            self._sat = dict(seats)

    def disarm(self) -> None:
        """Stand up: the layers are what they were."""
        with _GUARD:
            for module, seat in self._sat.items():
                here = module.__dict__.get(SEATS, {})
                if here.get(self._thread) is seat:
                    del here[self._thread]
                if not here and SEATS in module.__dict__:
                    module.__class__ = type(module).__mro__[1]
                    del module.__dict__[SEATS], module.__dict__[NEWEST]
            self._sat = {}

    def states(self) -> Tensor:
        """``[num_rows, layers + 1, hidden]`` float32, behind this step's logits."""
        found = [_kept(seat) for seat in self._last]
        return torch.stack([one.to(found[-1].device) for one in found], dim=1)

    def prompt_state(self) -> Tensor | None:
        """``[num_rows, hidden]`` float32 in the first step, ``None`` later."""
        return None if self._prompt is None else _kept(self._prompt)


def _kept(seat: Seat) -> Tensor:
    if seat.found is None:
        raise ProtocolError(
            "hidden states: got a forward pass that did not call the model's decoder layers and its"
            " output embedding as modules; allowed: one that does"
        )
    return seat.found.float()


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The decoder layers of a model, first to last: the list beside its input embedding.

    Raises
    ------
    UnsupportedError
        A model that has no such list.
    """
    embedding = model.get_input_embeddings()  # type: ignore[operator]
    number = shape_of(model).num_layers
    name = next((name for name, one in model.named_modules() if one is embedding), "")
    owner = model.get_submodule(name.rpartition(".")[0])
    lists = [one for one in owner.children() if isinstance(one, nn.ModuleList)]
    found = [one for one in lists if len(one) == number]
    if len(found) != 1:
        raise UnsupportedError(
            f"model: got {type(model).__name__}, with {len(found)} lists of {number} layers beside"
            " its input embedding; allowed: one, whose hidden states are read or shifted"
        )
    return list(found[0])


def shape_of(model: Any) -> ModelShape:
    """The width and the number of layers of a model."""
    config = model.config.get_text_config()
    return ModelShape(int(config.hidden_size), int(config.num_hidden_layers))
