"""ThinkRouter, SwiReasoning, LEAD and SeLaR: latent methods with a gate.

ThinkRouter is Soft Thinking whose latent rows the gate may turn discrete. The other three let the
engine sample the visible token and decide beside it what is fed.

``published`` differs from the default so (each line is a field of the config):

======================  =============================  ====================================
what                    default                        ``published`` (authors' code)
======================  =============================  ====================================
latent from             the think marker on            the first generated token (``start``)
mixture                 the 61 most probable tokens    the whole vocabulary (``mixture``)
after thinking          nothing is latent              SwiReasoning, LEAD: a last blend may
                                                       be fed; SeLaR: latent as before
                                                       (``goes_on_in_answer``)
switch control          see :mod:`tokenlens.methods._shared.gate.switch_control`
first blend             a line break                   SwiReasoning: the two characters
                                                       backslash and n (``first``)
LEAD's gate             the trend alone (paper)        and 1.0 and 0.2 nats (``gate``)
======================  =============================  ====================================

Not reproduced: SeLaR's code feeds a mixture to *every* row of a batch in which one row is latent;
SwiReasoning's entropies are rounded to the model's dtype; its math tokens are a list of its own.
"""

import math
from collections.abc import Mapping
from typing import ClassVar, Protocol, cast

import torch
from torch import Tensor

from tokenlens.core.columns import (
    ANYWHERE,
    BASE_WEIGHT,
    DENSE,
    END_IDS,
    END_LENGTH,
    GENERATED,
    INVERSE_TEMPERATURE,
    MAX_ANCHORS,
    MAX_ENTRIES,
    MIN_P,
    PHASE,
    SWITCH,
    TOP_K,
    TOP_P,
    Field,
    Phase,
    Value,
)
from tokenlens.core.method import Admission, Method
from tokenlens.core.proposal import Proposal, SignalRequest, Signals
from tokenlens.core.rows import Rows
from tokenlens.methods._shared.exempt import anchor_ids, exempt_ids
from tokenlens.methods._shared.gate import switch_control
from tokenlens.methods._shared.gate.fields import MAX_EXEMPT, Gate
from tokenlens.methods._shared.gate.rule import GateRules, GateState, gate_step
from tokenlens.methods._shared.gate.switching import Switching
from tokenlens.methods.selar.config import Selar
from tokenlens.spec import SpecError
from tokenlens.spec.needs import Need
from tokenlens.spec.registry import AnyMethod

SIGNALS = ("entropy", "max_probability")
SOURCES = ("tempered", "raw", "filtered", "topk")

SAMPLED = Field("gate.sampled", "bool", False)  # the engine samples the visible token
PROBABILITY = Field("gate.probability", "bool", False)  # else entropy
SOURCE = Field("gate.source", "int")  # index into SOURCES
OF_SUPPORT = Field("gate.of_support", "bool", False)  # filtered or topk
TOP = Field("gate.top", "int", 1)
FRACTION = Field("gate.fraction", "bool", False)
SIGN = Field("gate.sign", "float", 1.0)
ENTER = Field("gate.enter", "float", infinite=True)
LEAVE = Field("gate.leave", "float", infinite=True)
AT_BOUND = Field("gate.enter_at_bound", "bool", True)
TREND = Field("gate.trend", "bool", False)
FIRST_LATENT = Field("gate.first_latent", "bool", False)
DWELL_LATENT = Field("gate.dwell_latent", "int")
DWELL_DISCRETE = Field("gate.dwell_discrete", "int")
CAP = Field("gate.max_switches", "int")
MODE = Field("gate.mode", "bool", False)
STARTED = Field("gate.started", "bool", False)
REFERENCE = Field("gate.reference", "float")
STAY = Field("gate.stay", "int")
SWITCHES = Field("gate.switches", "int")
LEFT = Field("gate.left", "bool", False)  # of the step that is pending
LOCKS = Field("gate.locks", "bool", False)
LOCKED = Field("gate.locked", "bool", False)
INJECTED_LOCKS = Field("gate.injected_end_locks", "bool", True)
EXEMPT = Field("gate.exempt", "int", -1, size=MAX_EXEMPT, fixed=True)
# Blends at the first step, at entering and at leaving.
ANCHORS = Field("gate.anchors", "int", -1, size=3 * MAX_ANCHORS, fixed=True)
KEEP = tuple(Field(f"gate.keep_{name}", "float", 1.0) for name in ("first", "enter", "leave"))
MOVES = tuple(Field(f"gate.moves_{name}", "float") for name in ("first", "enter", "leave"))
LEAVES_BLENDED = Field("gate.leaves_blended", "bool", False)

NEVER = 1 << 40


class GateMethod(Method):
    """The gate over the rows of a batch, and what the three methods of its own feed."""

    counters: ClassVar[Mapping[str, Field]] = {"gate_switches": SWITCHES}

    def __init__(self) -> None:
        super().__init__(
            "gate",
            *(SAMPLED, PROBABILITY, SOURCE, OF_SUPPORT, TOP, FRACTION, SIGN, ENTER, LEAVE),
            *(AT_BOUND, TREND, FIRST_LATENT, DWELL_LATENT, DWELL_DISCRETE, CAP),
            *(MODE, STARTED, REFERENCE, STAY, SWITCHES, LEFT, LOCKS, LOCKED, INJECTED_LOCKS),
            *(EXEMPT, ANCHORS, *KEEP, *MOVES, LEAVES_BLENDED),
            *switch_control.FIELDS,
        )

    @property
    def records(self) -> tuple[str, ...]:
        return (SWITCH,)

    def serves(self, config: AnyMethod) -> bool:
        # Whatever its name: the settings of the gate are in the field.
        return isinstance(getattr(config, "gate", None), Gate)

    def admit(self, config: AnyMethod, admission: Admission) -> Mapping[Field, Value]:
        gate = _gated(config).gate
        name, vocab = config.method, admission.vocab_size
        values = _rules(gate, vocab)
        if gate.of == "topk" and gate.top > vocab:
            raise SpecError.of(f"{name}.gate.top", gate.top, f"at most the vocabulary's {vocab}")
        if gate.exempt != "none":
            values[EXEMPT] = exempt_ids(gate.exempt, admission, f"{name}.gate.exempt")
        if isinstance(config, Selar):
            for field in ("top_k", "max_entries"):
                if getattr(config, field) > vocab:
                    allowed = f"at most the vocabulary's {vocab}"
                    raise SpecError.of(f"{name}.{field}", getattr(config, field), allowed)
            values |= {
                TOP_K: config.top_k, TOP_P: config.top_p, MIN_P: config.min_p,
                MAX_ENTRIES: config.max_entries,
            }  # fmt: skip
        if isinstance(config, Switching):
            values |= _switching(config, admission)
        if isinstance(config, (Selar, Switching)):
            values |= {
                SAMPLED: True,
                INVERSE_TEMPERATURE: 1 / config.temperature,
                ANYWHERE: config.rules.goes_on_in_answer,
            }
        return values

    def needs(self, config: AnyMethod) -> Need:
        gate, temperature = _gated(config).gate, _gated(config).temperature
        found = Need.STATISTICS
        if gate.of == "raw" and temperature != 1:
            found |= Need.RAW_SIGNALS
        if isinstance(config, Switching):
            if config.first or config.enter or config.leave:
                found |= Need.BLENDS
            if config.switch_control is not None:
                found |= Need.FORCING
                if config.rules.hidden_end_locks:
                    found |= Need.AFTER_THINKING
        if isinstance(config, (Selar, Switching)) and config.rules.goes_on_in_answer:
            found |= Need.AFTER_THINKING
        return found

    def request_signals(self, rows: Rows, request: SignalRequest) -> None:
        request.active = request.active | (rows[self.on] & rows[SAMPLED] & _here(rows))

    def propose(self, rows: Rows, signals: Signals, proposal: Proposal) -> None:
        here = rows[self.on] & signals.valid & _here(rows)
        value = rows[SIGN] * _signal(rows, signals)
        state = GateState(rows[MODE], rows[STARTED], rows[REFERENCE], rows[STAY], rows[SWITCHES])
        rules = GateRules(
            rows[ENTER], rows[LEAVE], rows[AT_BOUND], rows[TREND], rows[FIRST_LATENT],
            rows[DWELL_LATENT], rows[DWELL_DISCRETE], rows[CAP],
        )  # fmt: skip
        free = ~rows[LOCKED]
        beginning = here & ~state.started
        new, entered, left = gate_step(value, state, rules, free)
        for column, values in zip((MODE, STARTED, REFERENCE, STAY, SWITCHES), new):
            rows.choose(column, here, values)
        entered, left = entered & here, left & here
        rows[LEFT] = left
        if rows.traced:
            rows.record(SWITCH, entered.float() - left.float())
        sampled = rows[SAMPLED]
        latent = (new.latent & free) | (left & rows[LEAVES_BLENDED])
        proposal.latent = torch.where(here & sampled, latent, proposal.latent)
        # The engine samples what the gate of ThinkRouter makes discrete.
        routed = here & ~sampled & ~new.latent & proposal.latent
        proposal.latent = proposal.latent & ~routed
        proposal.forced = proposal.forced & ~routed
        if Need.BLENDS in rows.needs:
            _blend(rows, proposal, beginning & latent, entered, left & sampled)
        if rows.uses(switch_control.AFTER):
            switch_control.propose(rows, signals, proposal)

    def commit(self, rows: Rows, before: Tensor, sampled: Tensor) -> None:
        on = rows[self.on] & rows[SAMPLED]
        left = rows[LEFT]
        if rows.uses(EXEMPT):
            exempt = rows[self.on] & (rows[EXEMPT] == sampled[:, None]).any(dim=1)
            rows.latent = rows.latent & ~(exempt & ~left)
        if Need.AFTER_THINKING in rows.needs:
            ends = (before != Phase.ANSWER) & (rows[PHASE] == Phase.ANSWER)
            # After an injected end the phase is the answer already, and a sampled one still locks.
            ends = ends | ((rows[END_IDS][:, 0] == sampled) & (rows[END_LENGTH] == 1))
            if rows.uses(switch_control.AFTER):
                ends = ends & (~rows[switch_control.INJECTING] | rows[INJECTED_LOCKS])
            # Where the answer is discrete anyway, thinking may be opened again.
            ends = ends & rows[ANYWHERE]
            if rows.uses(switch_control.AFTER):
                ends = ends | rows[switch_control.HIDDEN]
            locks = on & rows[LOCKS] & ends
            rows.latent = rows.latent & ~(locks & ~left)
            # Entering and ending at one step is no entering; the first step enters nothing.
            entered = (rows[STAY] == 0) & ~left & (rows[GENERATED] > 1)
            rows.choose(MODE, locks & rows[ANYWHERE] & entered, False)
            rows.choose(LOCKED, locks, True)
        if rows.uses(switch_control.AFTER):
            switch_control.commit(rows, left & on, rows[SWITCHES])


class _Gated(Protocol):
    """A config with a gate, whatever its name."""

    method: str
    gate: Gate
    temperature: float


def _gated(config: AnyMethod) -> _Gated:
    return cast("_Gated", config)


def _here(rows: Rows) -> Tensor:
    phase = rows[PHASE]
    here = phase == Phase.THINKING
    if Need.AFTER_THINKING in rows.needs:
        here = here | (rows[ANYWHERE] & (phase == Phase.ANSWER))
    return here


def _rules(gate: Gate, vocab_size: int) -> dict[Field, Value]:
    sign = 1.0 if gate.latent_when == "high" else -1.0
    # A fraction of a support whose size is known is a fixed number of nats.
    size = {"raw": vocab_size, "tempered": vocab_size, "topk": gate.top}.get(gate.of, 0)
    unit = math.log(size) if gate.unit == "fraction" and size > 1 else 1.0
    enter = -math.inf if gate.enter is None else sign * gate.enter * unit
    leave = gate.enter if gate.leave is None else gate.leave
    return {
        PROBABILITY: gate.signal == "max_probability",
        SOURCE: SOURCES.index(gate.of),
        OF_SUPPORT: gate.of in ("filtered", "topk"),
        TOP: gate.top,
        FRACTION: gate.unit == "fraction" and gate.of == "filtered",
        SIGN: sign,
        ENTER: enter,
        LEAVE: math.inf if leave is None else sign * leave * unit,
        AT_BOUND: gate.enter_at_bound,
        TREND: gate.trend,
        FIRST_LATENT: gate.first == "latent",
        DWELL_LATENT: gate.dwell_latent,
        DWELL_DISCRETE: gate.dwell_discrete,
        CAP: NEVER if gate.max_switches is None else gate.max_switches,
    }


def _switching(config: Switching, admission: Admission) -> dict[Field, Value]:
    name = str(config.method)
    full = config.mixture == "full"
    anchors: list[int] = []
    values: dict[Field, Value] = {
        MAX_ENTRIES: min(config.max_entries, max(1, admission.vocab_size - MAX_ANCHORS)),
        DENSE: full,
        BASE_WEIGHT: float(full),
        LOCKS: True,
        INJECTED_LOCKS: config.rules.injected_end_locks,
        LEAVES_BLENDED: config.leave is not None,
    }
    for place, field in enumerate(("first", "enter", "leave")):
        blend = getattr(config, field)
        ids = [] if blend is None else list(anchor_ids(blend, admission, f"{name}.{field}.tokens"))
        anchors += ids + [-1] * (MAX_ANCHORS - len(ids))
        if blend is not None:
            values[KEEP[place]] = blend.keep
            values[MOVES[place]] = (1 - blend.keep) / config.budget if blend.moves else 0.0
    values[ANCHORS] = anchors
    return values | switch_control.columns(config, admission)


def _signal(rows: Rows, signals: Signals) -> Tensor:
    """Each row's signal, ``[num_rows]`` float32, in the unit of its bounds."""
    probability, source = rows[PROBABILITY], rows[SOURCE]
    assert signals.entropy is not None
    assert signals.max_probability is not None
    value = torch.where(probability, signals.max_probability, signals.entropy)
    if Need.RAW_SIGNALS in rows.needs:
        assert signals.raw_entropy is not None
        assert signals.raw_max_probability is not None
        raw = torch.where(probability, signals.raw_max_probability, signals.raw_entropy)
        value = torch.where(source == SOURCES.index("raw"), raw, value)
    if rows.uses(OF_SUPPORT):
        p = signals.probabilities
        rank = torch.arange(p.shape[1], device=p.device)
        cut = (source == SOURCES.index("topk"))[:, None] & (rank >= rows[TOP][:, None])
        q = torch.where(cut, 0.0, p)
        q = q / q.sum(dim=1, keepdim=True).clamp(min=torch.finfo(q.dtype).tiny)
        entropy = torch.special.entr(q).sum(dim=1)
        # One entry has an entropy of 0 whatever it is divided by.
        size = (q > 0).sum(dim=1).clamp(min=2).log()
        entropy = torch.where(rows[FRACTION], entropy / size, entropy)
        found = torch.where(probability, q[:, 0], entropy)
        value = torch.where(rows[OF_SUPPORT], found, value)
    return value


def _blend(rows: Rows, proposal: Proposal, first: Tensor, entered: Tensor, left: Tensor) -> None:
    """Move the mixtures of some rows towards their anchors, in the last entries of the row."""
    # [num_rows, 3, MAX_ANCHORS]
    anchors = rows[ANCHORS].view(-1, 3, MAX_ANCHORS)
    generated = rows[GENERATED]
    keep = torch.ones_like(rows[KEEP[0]])
    chosen = torch.full_like(anchors[:, 0], -1)
    for place, where in enumerate((first, entered, left)):
        # Beyond the budget nothing is left of the anchor.
        moved = (rows[KEEP[place]] + rows[MOVES[place]] * generated).clamp(max=1.0)
        keep = torch.where(where, moved, keep)
        chosen = torch.where(where[:, None], anchors[:, place], chosen)
    given = chosen >= 0
    blended = given.any(dim=1)
    share = (1 - keep) / given.sum(dim=1).clamp(min=1)
    places = slice(proposal.weights.shape[1] - MAX_ANCHORS, None)
    weights = torch.where(blended[:, None], proposal.weights * keep[:, None], proposal.weights)
    ids = proposal.ids.clone()
    tail = torch.where(given, share[:, None], 0.0)
    weights = weights.clone()
    weights[:, places] = torch.where(blended[:, None], tail, weights[:, places])
    ids[:, places] = torch.where(
        blended[:, None], torch.where(given, chosen, ids[:, :1]), ids[:, places]
    )
    proposal.weights, proposal.ids = weights, ids
    rows[BASE_WEIGHT] = torch.where(rows[DENSE], keep, rows[BASE_WEIGHT])


GATE = GateMethod()
