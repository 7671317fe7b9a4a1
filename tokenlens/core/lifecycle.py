"""The requests of a batch: they are added, removed, suspended, resumed, rewound.

A request has a slot from ``add`` or ``resume`` to ``remove`` or ``suspend``. What a step may leave
out follows from the requests that are live, and is found anew whenever one comes or goes.
"""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import torch
from tokenlens_kernels import signals_topk
from torch import Tensor

from tokenlens.core import phases, soundness
from tokenlens.core.columns import (
    ALIVE,
    ANYWHERE,
    BASE_WEIGHT,
    DENSE,
    END_IDS,
    END_LENGTH,
    EOS_IDS,
    FORCE_AT,
    FORCE_IDS,
    FORCE_LENGTH,
    FORCED_STEPS,
    GENERATED,
    INVALID_STEPS,
    INVERSE_TEMPERATURE,
    LATENT_STEPS,
    LOG_PROBABILITY,
    MAX_ANCHORS,
    MAX_ENTRIES,
    MIN_P,
    NOISE_SCALE,
    NOISE_TEMPERATURE,
    PHASE,
    POSITION,
    PROMPT_THINKING,
    SEED,
    THINKING_TOKENS,
    TOP_K,
    TOP_P,
    Field,
)
from tokenlens.core.engine_vectors import FIELDS as VECTOR_FIELDS
from tokenlens.core.engine_vectors import EngineVectors, before_step
from tokenlens.core.layer_access import FIELDS as LAYER_FIELDS
from tokenlens.core.layer_access import LayerAccess
from tokenlens.core.marker_columns import STATE
from tokenlens.core.marker_table import MarkerTable
from tokenlens.core.method import HOOKS, Method, overrides
from tokenlens.core.next_input import NextInputs
from tokenlens.core.report import RESERVED, TOTAL_COLUMNS
from tokenlens.core.request import Request
from tokenlens.core.rows import IDLE, Live
from tokenlens.core.slots import SlotTable
from tokenlens.core.snapshots import Snapshots, SuspendedRequest, copy_of, restore
from tokenlens.errors import MethodError
from tokenlens.spec import SpecError, refuse_needs
from tokenlens.spec import base as spec_base
from tokenlens.spec.needs import Need

if TYPE_CHECKING:
    from tokenlens.core.compiled import Forms
    from tokenlens.core.pending import PendingDecision

COMPILES = "TOKENLENS_COMPILE"
"""A variable of the environment: 0 leaves the step eager on devices too."""

COMMON_FIELDS: Final = (
    *(PHASE, POSITION, GENERATED, THINKING_TOKENS, PROMPT_THINKING),
    *(SEED, EOS_IDS, END_IDS, END_LENGTH),
    *(FORCE_IDS, FORCE_LENGTH, FORCE_AT),
    *(INVERSE_TEMPERATURE, TOP_K, TOP_P, MIN_P, MAX_ENTRIES, NOISE_TEMPERATURE),
    *(ALIVE, LATENT_STEPS, FORCED_STEPS, INVALID_STEPS),
    *(ANYWHERE, DENSE, BASE_WEIGHT, NOISE_SCALE, LOG_PROBABILITY, soundness.EDITS),
    *phases.FIELDS,
    *VECTOR_FIELDS,
    *LAYER_FIELDS,
)


def totals_of(methods: Sequence[Method]) -> dict[str, Field]:
    """Columns that count, by the name that traces and metrics give them.

    Raises
    ------
    ValueError
        Two methods have one name, or two things are counted by one.
    """
    names = [method.name for method in methods]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"methods: got {name!r} twice; allowed: each name once")
    totals = dict(TOTAL_COLUMNS)
    for method in methods:
        for name, column in method.counters.items():
            if name in totals or name in RESERVED:
                allowed = "a name that neither the core, nor a trace, nor another method counts by"
                raise ValueError(f"{method.name}.counters: got {name!r}; allowed: {allowed}")
            if column not in method.fields:
                allowed = f"columns among the fields of {method.name}"
                raise ValueError(f"{method.name}.counters: got {column.name}; allowed: {allowed}")
            totals[name] = column
    return totals


class Lifecycle:
    """The live requests of a core, and all state of theirs.

    Its parameters are :class:`tokenlens.core.Core`'s.
    """

    def __init__(
        self,
        *,
        methods: Sequence[Method],
        max_slots: int,
        vocab_size: int,
        device: torch.device | str = "cpu",
        width: int = spec_base.MAX_ENTRIES,
        holes: Sequence[int] = (),
        rewind_steps: int = 0,
        signals: Callable[..., tuple[Tensor, ...]] = signals_topk,
        engine_vectors: EngineVectors | None = None,
        layers: LayerAccess | None = None,
        engine: str = "this engine",
        max_markers: int | None = None,
        history: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        self.device = torch.device(device)
        self.vocab_size = vocab_size
        self.methods = tuple(methods)
        # What full traces keep of a step beside its columns, by name
        self.records = tuple(name for method in self.methods for name in method.records)
        # Columns that count, by the name that traces and metrics give them
        self.totals = totals_of(self.methods)
        self._holes = torch.tensor(holes, dtype=torch.int64, device=self.device) if holes else None
        self.width = min(width, vocab_size)
        self._signals = signals
        fields = (*COMMON_FIELDS, *(column for method in self.methods for column in method.fields))
        self.table = SlotTable(max_slots, fields, self.device)
        # What `step` decided; becomes the state when tokens are committed.
        self._pending: PendingDecision | None = None
        self.marker_table = MarkerTable(vocab_size, self.device, max_markers or max_slots)
        self.next_input = NextInputs(max_slots, self.width, self.device, history)
        self._engine_vectors, self._engine = engine_vectors, engine
        self._layers = layers
        if engine_vectors is not None:
            self.next_input.extend(engine_vectors.hidden_size)
        self._snapshots = Snapshots(self.table, rewind_steps) if rewind_steps > 0 else None
        self._request_of: dict[int, Request] = {}
        self._live: Counter[str] = Counter()
        # Live requests that edit by a method, that have a need, that use a column
        self._edits: Counter[str] = Counter()
        self._needs: Counter[Need] = Counter()
        self._used: Counter[Field] = Counter()
        self._files: Counter[tuple[Field, int]] = Counter()
        self._hooks: dict[str, list[Method]] = {hook: [] for hook in HOOKS}
        self._any_method = self._reweighs = self._vectors = False
        self._outside: list[Method] = []
        # Methods whose commit raised, by name, where whoever calls can end their requests alone
        self.contained: dict[str, MethodError] | None = None
        # Wide columns that live methods may change
        self._changing: list[Field] = []
        self._now = IDLE
        self.live_key: object = ()
        """What is live, for those who compile: equal where the same ops run."""
        # The number of holes, of states to take back, of the engine's vectors' coordinates, of the
        # history's places
        self.structure = (
            len(holes),
            rewind_steps,
            engine_vectors.hidden_size if engine_vectors else 0,
            0 if history is None else history[0].shape[1],
        )
        self.forms: Forms | None = None
        if self.device.type not in ("cpu", "meta") and os.environ.get(COMPILES) != "0":
            # Elsewhere a step costs what its arithmetic costs, and compiled it was slower.
            from tokenlens.core.compiled import FORMS

            self.forms = FORMS

    def add(
        self, slot: int, request: Request, prompt_ids: Sequence[int], position: int | None = None
    ) -> None:
        """Admit a request into a slot; whatever the slot held before is gone.

        Parameters
        ----------
        prompt_ids
            The prompt's tokens without padding.
        position
            The prompt's length where it is not ``len(prompt_ids)``, e.g. for prompt embeddings.
        """
        if not 0 <= slot < self.table.max_slots:
            raise IndexError(f"slot: got {slot}; allowed: 0 to {self.table.max_slots - 1}")
        position = len(prompt_ids) if position is None else position
        values = request.at_prompt(prompt_ids, position)
        for column in (TOP_K, MAX_ENTRIES):
            if int(values.get(column, 0)) > self.width:  # type: ignore[arg-type]
                raise SpecError.of(
                    column.name.removeprefix("ask."),
                    values[column],
                    f"at most the {self.width} entries that this core was made for",
                )
        hosted = self._engine_vectors.hosts if self._engine_vectors else Need.NOTHING
        if self._layers is not None:
            hosted |= self._layers.hosts
        refuse_needs(request.spec, self._engine, hosted)
        automaton = request.markers.automaton
        if Need.BLENDS in request.needs:
            if self.width <= MAX_ANCHORS:
                raise SpecError.of("width", self.width, f"more than {MAX_ANCHORS}, for blends")
            limit = self.width - MAX_ANCHORS
            values[MAX_ENTRIES] = min(int(values[MAX_ENTRIES]), limit)  # type: ignore[arg-type]
        if automaton is not None:
            # First what may be refused.
            self.marker_table.enter(automaton)
        self.remove(slot)
        if automaton is not None:
            values.update(self.marker_table.columns(automaton, int(values[STATE])))  # type: ignore[arg-type]
        self.table.write(slot, values)
        self._forget(slot)
        self._assign_slot(slot, request)

    def remove(self, slot: int) -> None:
        """Forget a slot's request, if it has one."""
        request = self._release_slot(slot)
        if request is not None:
            self._free_markers(request)

    def _release_slot(self, slot: int) -> Request | None:
        request = self._request_of.pop(slot, None)
        if request is None:
            return None
        self._live.subtract(request.methods)
        self._edits.subtract(request.edits)
        self._needs.subtract(request.needs)
        self._used.subtract(request.used)
        self._files.subtract(request.files)
        self._find_live()
        self.table.write(slot, {})
        self._forget(slot)
        self.next_input.clear(slot)
        return request

    def _forget(self, slot: int) -> None:
        """Drop what a step decided of a slot."""
        if self._pending is not None:
            self._pending.forgotten.add(slot)

    def _free_markers(self, request: Request) -> None:
        """Give a request's markers back to the marker table."""
        if request.markers.automaton is not None:
            self.marker_table.leave(request.markers.automaton)

    def rewind(self, slot: int, generated: int) -> None:
        """Take back a slot's newest tokens: it is as it was when it had ``generated`` of them.

        At most ``rewind_steps`` tokens, which the caller counts: the device is not asked.
        """
        if self._snapshots is None:
            raise RuntimeError("rewind: got a core with rewind_steps=0; allowed: at least 1")
        self._forget(slot)
        self._snapshots.restore(slot, generated, self.table)
        self.next_input.clear(slot)

    def rewind_rows(self, slots: Tensor, generated: Tensor) -> None:
        """Take back the newest tokens of many slots, without the host knowing how many.

        What a step decided stays, and so does what is fed next: for callers that commit at once.

        Parameters
        ----------
        slots, generated
            ``[num_rows]`` int64: each slot is as it was when it had so many tokens; one that has no
            more stays as it is.
        """
        if self._snapshots is None:
            raise RuntimeError("rewind_rows: got a core with rewind_steps=0; allowed: at least 1")
        with torch.inference_mode():
            self._snapshots.restore_rows(slots, generated, self.table, self._changing)

    @property
    def rewind_steps(self) -> int:
        """Committed tokens that can be taken back again."""
        return 0 if self._snapshots is None else self._snapshots.steps

    def suspend(self, slot: int) -> SuspendedRequest:
        """Take a request out of its slot with all of its state, to come back with ``resume``."""
        suspended = SuspendedRequest(
            self._request_of[slot],
            copy_of(self.table, slot),
            None if self._snapshots is None else self._snapshots.copy_of(slot),
        )
        # Its state says where its markers are: they stay.
        self._release_slot(slot)
        return suspended

    def discard(self, suspended: SuspendedRequest) -> None:
        """Forget a suspended request, which will not come back."""
        self._free_markers(suspended.request)

    def resume(self, slot: int, suspended: SuspendedRequest) -> None:
        """Put a suspended request into a slot; what it was fed last is the engine's to remember."""
        self.remove(slot)
        restore(self.table, slot, suspended.state)
        self._forget(slot)
        if self._snapshots is not None and suspended.snapshots is not None:
            self._snapshots.restore_ring(slot, suspended.snapshots)
        self._assign_slot(slot, suspended.request)

    def _assign_slot(self, slot: int, request: Request) -> None:
        self._request_of[slot] = request
        self._live.update(request.methods)
        self._edits.update(request.edits)
        self._needs.update(request.needs)
        self._used.update(request.used)
        self._files.update(request.files)
        self._find_live()

    def take_contained(self) -> dict[str, MethodError]:
        """Methods whose commit raised since the last time, with the error; see ``contained``."""
        found, self.contained = self.contained or {}, {}
        return found

    @property
    def idle(self) -> bool:
        """No live request has a method: every step is a no-op."""
        return not self._any_method

    @property
    def may_be_latent(self) -> bool:
        """A live request has a method that feeds mixtures."""
        return Need.LATENT in self._now.needs

    @property
    def live_needs(self) -> Need:
        """What any live request needs."""
        return self._now.needs

    @property
    def used(self) -> frozenset[Field]:
        """Columns in which a live request came with another value than the default."""
        return frozenset(self._now.used)

    def vectors_before_step(self, used: frozenset[Field]) -> dict[str, Tensor]:
        """What the engine lends to a step of requests that use some columns, before the step."""
        if not self._vectors:
            return {}
        assert self._engine_vectors is not None
        return before_step(self._engine_vectors, self._now.needs, used)

    def _find_live(self) -> None:
        live = [method for method in self.methods if self._live[method.name] > 0]
        self._any_method = bool(live)
        needs = Need.NOTHING
        for need, count in self._needs.items():
            needs = needs | need if count > 0 else needs
        used = frozenset(column for column, count in self._used.items() if count > 0)
        files = frozenset(file for file, count in self._files.items() if count > 0)
        self._now = Live(needs, used, files)
        self._vectors = bool(needs & Need.ENGINE_VECTOR)
        # A step costs what its small calls cost, so it calls only the hooks that do anything.
        self._hooks = {hook: [m for m in live if overrides(m, hook)] for hook in HOOKS}
        self._hooks["edit"] = [m for m in self._hooks["edit"] if self._edits[m.name] > 0]
        names = tuple(method.name for method in live)
        self.live_key = names, tuple(method.name for method in self._hooks["edit"]), needs
        fields = (*COMMON_FIELDS, *(column for method in live for column in method.fields))
        # Where no hook changes the weights they are the op's, which looks at them itself.
        self._reweighs = (
            bool(self._hooks["reweigh"])
            or Need.BLENDS in needs
            or self._vectors
            or self._signals is not signals_topk
            or any(method.outside for method in live)
        )
        self._outside = [method for method in live if method.outside]
        self._changing = [column for column in fields if column.size > 1 and not column.fixed]
