"""The step as two compiled graphs, for devices: there a step costs what its launches cost.

The eager code is the truth and is traced as it stands, with fake tensors in the place of the
core's, which become inputs. Sizes are symbols, so that one compiled form serves any number of rows
and of slots. What a batch needs is known on the host: each set of live methods and needs has a form
of its own, and what has none is eager. Forms are made when they are asked for (:func:`warm`), never
by a step, and used after they have given the eager step's numbers. Knows no methods and no engine.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from tokenlens.core.pending import PendingDecision
from tokenlens.core.swap import Path, at, replaced, tensors_of
from tokenlens.core.traced import GivenVectors, traced_core

if TYPE_CHECKING:
    from tokenlens.core.columns import Field

logger = logging.getLogger(__name__)

ROWS = 8
"""Rows that a form is traced with; any number is run."""

OPTIONS: dict[str, Any] = {
    # Kernels that do not wait for each other are one launch.
    "combo_kernels": True,
    "combo_kernel_allow_mixed_sizes": 2,
    "combo_kernel_peak_memory_pct_threshold": None,
}
"""Inductor's settings, those that its version knows."""

Compiler = Callable[[GraphModule, Sequence[Tensor]], Callable[..., Any]]


def inductor(graph: GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Any]:
    """Compile a graph for the device of its inputs; torch keeps the result on disk."""
    known = torch._inductor.config.get_config_copy()
    options = {name: value for name, value in OPTIONS.items() if name in known}
    compiled: Callable[..., Any] = torch._inductor.compile(graph, list(inputs), options=options)
    return compiled


@dataclass
class Graph:
    """One half of a step."""

    run: Callable[..., Any]
    # Where the core's tensors are that it reads and writes
    state: list[Path]
    # Which of the tensors that the first half hands to the second it reads
    handed: list[int]


class Form:
    """A step and a commit for one set of live methods and needs.

    Parameters
    ----------
    core
        Of which such requests are live; nothing of it is changed.
    columns, dtype
        Of the logits.
    in_place
        The engine lets them be changed in place.
    """

    def __init__(
        self,
        core: Any,
        columns: int,
        dtype: torch.dtype,
        compiler: Compiler = inductor,
        in_place: bool = False,
    ) -> None:
        env = ShapeEnv(specialize_zero_one=False, duck_shape=False)
        mode = FakeTensorMode(shape_env=env, allow_non_fake_inputs=True)
        self._mode, self._compiler = mode, compiler
        self.asked: tuple[set[Field], set[Field]] = (set(), set())
        self._used = core.used
        state = tensors_of(core)
        self._paths, real = list(state), list(state.values())
        self._state = [_fake(mode, tensor) for tensor in real]
        self._slots = slots = _fake(mode, torch.empty(ROWS, dtype=torch.int64, device=core.device))
        with mode:
            sampled, entries = torch.empty_like(slots), torch.empty_like(slots)
            advance = torch.empty_like(slots, dtype=torch.bool)
            logits = torch.empty(slots.shape[0], columns, dtype=dtype, device=core.device)
            beside = {
                name: torch.empty((slots.shape[0], *tensor.shape[1:]), device=core.device)
                if name == "hidden"
                else torch.empty(tensor.shape, device=core.device)
                for name, tensor in core.vectors_before_step(self._used).items()
            }
        # Where the tensors of `rest` begin
        hosted = len(beside)

        def step(logits: Tensor, slots: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
            tensors = rest[hosted:]
            given = dict(zip(beside, rest[:hosted], strict=True))
            traced = traced_core(core, _by_id(real, tensors), self.asked, given)
            edited = traced.step(logits, slots, in_place=in_place)
            self._decision = traced._pending.decision()._replace(rows=None)
            own = {id(tensor) for tensor in (*tensors, slots)}
            held = tensors_of(self._decision).values()
            self._handed = [tensor for tensor in held if id(tensor) not in own]
            return (edited, *self._handed)

        def commit(
            sampled: Tensor, slots: Tensor, advance: Tensor, entries: Tensor, *rest: Tensor
        ) -> Any:
            tensors, handed = rest[: len(real)], rest[len(real) :]
            traced = traced_core(core, _by_id(real, tensors), self.asked)
            decision = self._filled(slots, handed, tensors)
            traced._pending = PendingDecision(slots, lambda: decision)
            where = entries if core.next_input.has_history else None
            return tuple(traced.commit(sampled, slots, advance, where))

        self.step = self._graph(step, [logits, slots, *beside.values()], [])
        with mode:
            handed = [torch.empty_like(tensor) for tensor in self._handed]
        self.commit = self._graph(commit, [sampled, slots, advance, entries], handed)

    def _graph(
        self, function: Callable[..., Any], first: list[Tensor], handed: list[Tensor]
    ) -> Graph:
        values = [*first, *self._state, *handed]
        with self._mode:
            graph = make_fx(function)(*values)
        graph.graph.eliminate_dead_code()
        begin, end = len(first), len(first) + len(self._state)
        used = []
        for place, node in enumerate([n for n in graph.graph.nodes if n.op == "placeholder"]):
            if node.users or place < begin:
                used.append(place)
            else:
                graph.graph.erase_node(node)
        graph.recompile()
        with tracing(TracingContext(self._mode)):
            run = self._compiler(graph, [values[place] for place in used])
        return Graph(
            run,
            [self._paths[place - begin] for place in used if begin <= place < end],
            [place - end for place in used if place >= end],
        )

    def _filled(self, slots: Tensor, handed: Sequence[Tensor], state: Sequence[Tensor]) -> Any:
        """What the step decided, with other tensors than those of the trace."""
        new = _by_id(self._state, state) | _by_id(self._handed, handed)
        return replaced(self._decision, new | {id(self._slots): slots})

    def run_step(self, core: Any, logits: Tensor, slots: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The logits to sample from, and what the commit has to be handed."""
        state = (at(core, path) for path in self.step.state)
        beside = core.vectors_before_step(self._used).values()
        edited, *handed = self.step.run(logits, slots, *beside, *state)
        return edited, handed

    def run_commit(
        self,
        core: Any,
        sampled: Tensor,
        slots: Tensor,
        advance: Tensor,
        entries: Tensor,
        handed: list[Tensor],
    ) -> tuple[Tensor, ...]:
        """The columns of the step's record."""
        state = (at(core, path) for path in self.commit.state)
        given = (handed[place] for place in self.commit.handed)
        return tuple(self.commit.run(sampled, slots, advance, entries, *state, *given))

    def decision(self, core: Any, slots: Tensor, handed: list[Tensor]) -> Any:
        """What the eager commit would have been handed."""
        return self._filled(slots, handed, [at(core, path) for path in self._paths])


class Forms:
    """The forms that are ready, by what is live.

    Parameters
    ----------
    compiler
        Makes a function of a graph; tests give a cheap one.
    """

    def __init__(self, compiler: Compiler = inductor) -> None:
        self._compiler = compiler
        # By what is live: several, which differ in the columns that are used
        self._ready: dict[object, list[Form]] = {}
        self._told = False

    def of(self, core: Any, logits: Tensor, in_place: bool = False) -> Form | None:
        """The form for what is live in a core, ``None`` if its step is eager."""
        if logits.stride() != (logits.shape[1], 1):
            return None
        key = core.live_key, *_key(core, logits.shape[1], logits.dtype, in_place)
        return self._fitting(core, key)

    def _fitting(self, core: Any, key: object) -> Form | None:
        # A form that looks at a column which nobody uses is slower, and right.
        return next((f for f in self._ready.get(key, ()) if core.used.isdisjoint(f.asked[0])), None)

    def warm(
        self,
        core: Any,
        requests: Sequence[Any],
        columns: int,
        dtype: torch.dtype,
        in_place: bool = False,
    ) -> bool:
        """Make the form for a batch of these requests, which is used from then on.

        It is not if it cannot be made or gives other numbers than the eager step: then the step
        stays eager, and that is said once. Takes seconds, or what torch's cache on disk takes.

        Parameters
        ----------
        core
            Without live requests; it is left as it is.
        """
        trial = self._trial(core, requests)
        key = trial.live_key, *_key(core, columns, dtype, in_place)
        if self._fitting(trial, key) is not None:
            return True
        try:
            form = Form(trial, columns, dtype, self._compiler, in_place)
            self._check(core, requests, form, columns, dtype)
        except Exception as error:
            if not self._told:
                logger.warning(
                    "tokenlens: a step could not be compiled and stays eager, which is slower and"
                    " changes no result (%s: %s). This is said once.",
                    type(error).__name__,
                    str(error).partition("\n")[0][:300],
                )
                self._told = True
            return False
        forms = [*self._ready.get(key, ()), form]
        self._ready[key] = sorted(forms, key=lambda one: len(one.asked[1]))
        return True

    def _trial(self, core: Any, requests: Sequence[Any], count: int = ROWS) -> Any:
        """A copy of a core in which some requests are live, in turn, in its first slots."""
        new = {id(t): t.clone() for t in tensors_of(core).values()}
        for tensor in (core.next_input.weights, core.next_input.ids):
            # Of a history as much as there are slots.
            new[id(tensor)] = tensor[: core.table.max_slots + 2].clone()
        trial = replaced(core, new)
        trial.forms = None
        if core._engine_vectors is not None:
            trial._engine_vectors = GivenVectors(core._engine_vectors, vectors(core, count))
        for slot in range(min(ROWS, trial.table.max_slots)):
            request = requests[slot % len(requests)]
            trial.add(slot, request, [i for marker in request.start_markers[:1] for i in marker])
        return trial

    def _check(
        self, core: Any, requests: Sequence[Any], form: Form, columns: int, dtype: torch.dtype
    ) -> None:
        """Raise RuntimeError unless a form decides as the eager step does."""
        generator = torch.Generator().manual_seed(0)
        for count in {1, min(3, core.table.max_slots), min(ROWS, core.table.max_slots)}:
            eager, ours = (self._trial(core, requests, count) for _ in range(2))
            slots = torch.arange(count, device=core.device)
            for _ in range(CHECKED_STEPS):
                logits = torch.randn(count, columns, generator=generator) * 4
                logits = logits.to(core.device, dtype)
                advance = (torch.rand(count, generator=generator) < 0.8).to(core.device)
                expected = eager.step(logits.clone(), slots, in_place=True)
                found, handed = form.run_step(ours, logits, slots)
                sampled = expected[:, : core.vocab_size].argmax(dim=1)
                entries = torch.where(advance, slots, ours.table.scratch_slot)
                has_history = core.next_input.has_history
                record = eager.commit(sampled, slots, advance, entries if has_history else None)
                columns_found = form.run_commit(ours, sampled, slots, advance, entries, handed)
                _compare("logits", found, expected)
                for name, one, other in zip(record._fields, columns_found, record, strict=True):
                    _compare(name, one, other)
                # But for the scratch slot, into which rows write in no order.
                for one, other in zip(_state_of(ours), _state_of(eager), strict=True):
                    _compare("state", one[:-1], other[:-1])
                for path, tensor in tensors_of(ours.next_input).items():
                    _compare(str(path), tensor[:count], at(eager.next_input, path)[:count])


def _state_of(core: Any) -> list[Tensor]:
    return [core.table.ints, core.table.floats, *core.table.wide.values()]


CHECKED_STEPS = 6
TOLERANCE = 1e-5


def vectors(core: Any, count: int) -> dict[str, Tensor]:
    """Vectors of an engine for so many rows, before it has any."""
    size, generator = core._engine_vectors.hidden_size, torch.Generator().manual_seed(1)
    shapes = {"hidden": (count, size), "norm": (), "matrix": (size, size), "single": (size, size)}
    return {
        name: torch.randn(shape, generator=generator).to(core.device)
        for name, shape in shapes.items()
    }


def _compare(name: str, found: Tensor, expected: Tensor) -> None:
    tolerance = TOLERANCE if expected.is_floating_point() else 0.0
    if not torch.allclose(found, expected, rtol=tolerance, atol=tolerance, equal_nan=True):
        raise RuntimeError(f"{name}: the compiled step gives other numbers than the eager one")


def _key(core: Any, columns: int, dtype: torch.dtype, in_place: bool) -> tuple[Any, ...]:
    """What a form depends on beside what is live."""
    return core.vocab_size, core.width, core.device, columns, dtype, in_place, core.structure


FORMS = Forms()
"""Those of this process: a core on a device uses them unless it is told otherwise."""


def _by_id(old: Sequence[Tensor], new: Sequence[Tensor]) -> dict[int, Tensor]:
    return {id(a): b for a, b in zip(old, new, strict=True)}


def _fake(mode: FakeTensorMode, tensor: Tensor) -> Tensor:
    """A fake of a tensor whose first size is a symbol."""
    sizes = [DimDynamic.DYNAMIC, *[DimDynamic.STATIC] * (tensor.dim() - 1)][: tensor.dim()]
    context: Any = StatelessSymbolicContext(dynamic_sizes=sizes)
    return mode.from_tensor(tensor, symbolic_context=context)
