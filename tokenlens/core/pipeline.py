"""The step pipeline: logits in, forced tokens and the next inputs out, for a whole batch at once.

One step has two halves. ``step`` looks at the logits and writes down what each row intends; it
changes no request's state, so an engine may call it for a row and then not sample. ``commit`` gets
the tokens that were really sampled and moves exactly those requests on. Neither reads a device
value on the host.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import torch
from tokenlens_kernels import signals_topk
from torch import Tensor

from tokenlens.core import engine_vectors, phases, soundness
from tokenlens.core.columns import (
    ANYWHERE,
    BASE_WEIGHT,
    DENSE,
    END_IDS,
    END_LENGTH,
    EOS_IDS,
    FORCE_AT,
    FORCE_IDS,
    FORCE_LENGTH,
    GENERATED,
    INVERSE_TEMPERATURE,
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
from tokenlens.core.engine_vectors import Host, base_vectors
from tokenlens.core.forcing import FORCED_LOGIT
from tokenlens.core.marker_columns import STATE
from tokenlens.core.marker_table import MarkerTable
from tokenlens.core.method import HOOKS, Method, overrides
from tokenlens.core.next_input import FeedPlan
from tokenlens.core.pending import Intent, Intents
from tokenlens.core.proposal import Proposal, SignalRequest, Signals
from tokenlens.core.request import Request
from tokenlens.core.rows import IDLE, Live, Rows
from tokenlens.core.slots import SlotTable
from tokenlens.core.snapshots import Parked, Past, copy_of, paste
from tokenlens.spec import SpecError, refuse_needs
from tokenlens.spec import base as spec_base
from tokenlens.spec.needs import Need

GOING = Field("going", "bool", True)  # no end-of-text token has been committed
LATENT_STEPS = Field("count.latent_steps", "int")
FORCED_STEPS = Field("count.forced_steps", "int")
INVALID_STEPS = Field("count.invalid_steps", "int")

COMMON_FIELDS: Final = (
    *(PHASE, POSITION, GENERATED, THINKING_TOKENS, PROMPT_THINKING),
    *(SEED, EOS_IDS, END_IDS, END_LENGTH),
    *(FORCE_IDS, FORCE_LENGTH, FORCE_AT),
    *(INVERSE_TEMPERATURE, TOP_K, TOP_P, MIN_P, MAX_ENTRIES, NOISE_TEMPERATURE),
    *(GOING, LATENT_STEPS, FORCED_STEPS, INVALID_STEPS),
    *(ANYWHERE, DENSE, BASE_WEIGHT, NOISE_SCALE, LOG_PROBABILITY, soundness.EDITS),
    *phases.FIELDS,
    *engine_vectors.FIELDS,
)


class Step(NamedTuple):
    """What one committed step was, per row; the columns of a trace record."""

    # [num_rows] int64: of the token that was committed
    position: Tensor
    # [num_rows] int64: the phase that the token was decided in
    phase: Tensor
    # [num_rows] int64
    token: Tensor
    # [num_rows] bool: the token's place in the sequence is fed as a mixture
    latent: Tensor
    # [num_rows] bool: the token was decided here, not by the engine's sampler
    forced: Tensor
    # [num_rows] bool: False where the logits, or what was made of them, could not be used
    valid: Tensor
    # [num_rows] bool: False where no token was committed (not sampled, or finished before)
    advanced: Tensor
    # [num_rows] float32; 0 where nobody asked for signals
    entropy: Tensor
    max_probability: Tensor
    # [num_rows, width] float32 and int64; meaningful where latent
    weights: Tensor
    ids: Tensor
    # [num_rows] float32: of the step's noise, for trainers
    log_probability: Tensor
    # [num_rows, width] float32, or [num_rows, 0] where no live request has any
    scores: Tensor
    # [num_rows, len(records)] float32, or [num_rows, 0] where no live request has a full trace
    notes: Tensor


class Core:
    """The state of a batch of requests on one device, and its step function.

    Parameters
    ----------
    methods
        The methods that requests may have, in the order in which their hooks run.
    max_slots
        Requests that can be live at once.
    vocab_size
        Ids up to the tokenizer's largest. Logits may be wider; the rest is padding.
    holes
        Ids below it that are no token: never part of a mixture, as padding is not.
    rewind_steps
        Committed tokens that can be taken back again, for engines that drop tokens which they had
        sampled ahead of their scheduler. 0 keeps nothing.
    signals
        The signals op; tests script it.
    host
        What the engine lends to methods that need more than concept tokens; ``None``: nothing.
    engine
        Its name, for the refusal of what it does not lend.

    Notes
    -----
    The width of concept tokens is fixed for the life of the core and not chosen by the batch, so
    that sums over entries round the same whatever else is in the batch.
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
        host: Host | None = None,
        engine: str = "this engine",
    ) -> None:
        self.device = torch.device(device)
        self.vocab_size = vocab_size
        self.methods = tuple(methods)
        # What full traces keep of a step beside its columns, by name
        self.records = tuple(name for method in self.methods for name in method.records)
        # Columns that methods count in, by the name that traces and metrics give them
        self.counters = {
            name: column for method in self.methods for name, column in method.counters.items()
        }
        self._holes = torch.tensor(holes, dtype=torch.int64, device=self.device) if holes else None
        self.width = min(width, vocab_size)
        self._signals = signals
        fields = (*COMMON_FIELDS, *(column for method in self.methods for column in method.fields))
        self.table = SlotTable(max_slots, fields, self.device)
        # What `step` intends; becomes the state when a token is committed.
        self._intents = Intents(self.table, self.width)
        self.marker_table = MarkerTable(vocab_size, self.device)
        self.feed = FeedPlan(max_slots, self.width, self.device)
        self._host, self._engine = host, engine
        # [max_slots + 2, hidden] and [max_slots + 2, width]: of the rows that were stepped
        self._base = torch.zeros(0, device=self.device)
        self._scores = torch.zeros(0, self.width, device=self.device)
        # [max_slots + 2, len(records)]: of the rows that were stepped
        self._records = torch.zeros(0, len(self.records), device=self.device)
        if host is not None:
            self.feed.extend(host.hidden_size)
            self._base = torch.zeros(max_slots + 2, host.hidden_size, device=self.device)
        self._past = Past(self.table, rewind_steps) if rewind_steps > 0 else None
        self._request_of: dict[int, Request] = {}
        self._live: Counter[str] = Counter()
        # Live requests that edit by a method, that have a need, that use a column
        self._edits: Counter[str] = Counter()
        self._needs: Counter[Need] = Counter()
        self._used: Counter[Field] = Counter()
        self._hooks: dict[str, list[Method]] = {hook: [] for hook in HOOKS}
        self._any_method = self._reweighs = self._vectors = False
        # Wide columns that live methods may change
        self._changing: list[Field] = []
        self._now = IDLE

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
        refuse_needs(request.spec, self._engine, self._host.hosts if self._host else Need.NOTHING)
        automaton = request.markers.automaton
        if Need.BLENDS in request.needs:
            if self.width <= MAX_ANCHORS:
                raise SpecError.of("width", self.width, f"more than {MAX_ANCHORS}, for blends")
            limit = self.width - MAX_ANCHORS
            values[MAX_ENTRIES] = min(int(values[MAX_ENTRIES]), limit)  # type: ignore[arg-type]
        if Need.SCORES in request.needs and len(self._scores) == 0:
            self._scores = torch.zeros(self.table.max_slots + 2, self.width, device=self.device)
        if Need.FULL_TRACE in request.needs and len(self._records) == 0:
            self._records = torch.zeros(
                self.table.max_slots + 2, len(self.records), device=self.device
            )
        if automaton is not None:
            # First what may be refused.
            self.marker_table.enter(automaton)
        self.remove(slot)
        if automaton is not None:
            values.update(self.marker_table.columns(automaton, int(values[STATE])))  # type: ignore[arg-type]
        self.table.write(slot, values)
        self._intents.forget(slot)
        self._enter(slot, request)

    def remove(self, slot: int) -> None:
        """Forget a slot's request, if it has one."""
        request = self._leave(slot)
        if request is not None:
            self._release(request)

    def _leave(self, slot: int) -> Request | None:
        request = self._request_of.pop(slot, None)
        if request is None:
            return None
        self._live.subtract(request.methods)
        self._edits.subtract(request.edits)
        self._needs.subtract(request.needs)
        self._used.subtract(request.used)
        self._notice_live()
        self.table.write(slot, {})
        self._intents.forget(slot)
        self.feed.clear(slot)
        return request

    def _release(self, request: Request) -> None:
        """Nobody needs a request's markers any more."""
        if request.markers.automaton is not None:
            self.marker_table.leave(request.markers.automaton)

    def rewind(self, slot: int, generated: int) -> None:
        """Take back a slot's newest tokens: it is as it was when it had ``generated`` of them.

        At most ``rewind_steps`` tokens, which the caller counts: the device is not asked.
        """
        if self._past is None:
            raise RuntimeError("rewind: got a core with rewind_steps=0; allowed: at least 1")
        self._intents.forget(slot)
        self._past.restore(slot, generated, self.table)
        self.feed.clear(slot)

    def park(self, slot: int) -> Parked:
        """Take a request out of its slot with all of its state, to come back with ``unpark``."""
        parked = Parked(
            self._request_of[slot],
            copy_of(self.table, slot),
            None if self._past is None else self._past.copy_of(slot),
        )
        # Its state says where its markers are: they stay.
        self._leave(slot)
        return parked

    def drop(self, parked: Parked) -> None:
        """Forget a parked request, which will not come back."""
        self._release(parked.request)

    def unpark(self, slot: int, parked: Parked) -> None:
        """Put a parked request into a slot; what it was fed last is the engine's to remember."""
        self.remove(slot)
        paste(self.table, slot, parked.state)
        self._intents.forget(slot)
        if self._past is not None and parked.past is not None:
            self._past.paste(slot, parked.past)
        self._enter(slot, parked.request)

    def _enter(self, slot: int, request: Request) -> None:
        self._request_of[slot] = request
        self._live.update(request.methods)
        self._edits.update(request.edits)
        self._needs.update(request.needs)
        self._used.update(request.used)
        self._notice_live()

    @property
    def idle(self) -> bool:
        """No live request has a method: every step is a no-op."""
        return not self._any_method

    @property
    def may_be_latent(self) -> bool:
        """A live request has a method that feeds mixtures."""
        return Need.LATENT in self._now.needs

    def _notice_live(self) -> None:
        live = [method for method in self.methods if self._live[method.name] > 0]
        self._any_method = bool(live)
        needs = Need.NOTHING
        for need, count in self._needs.items():
            needs = needs | need if count > 0 else needs
        used = frozenset(column for column, count in self._used.items() if count > 0)
        self._now = Live(needs, used)
        self._vectors = bool(needs & Need.ENGINE_VECTOR)
        # A step costs what its small calls cost, so it calls only the hooks that do anything.
        self._hooks = {hook: [m for m in live if overrides(m, hook)] for hook in HOOKS}
        self._hooks["edit"] = [m for m in self._hooks["edit"] if self._edits[m.name] > 0]
        fields = (*COMMON_FIELDS, *(column for method in live for column in method.fields))
        # Where nobody changes the weights they are the op's, which looks at them itself.
        self._reweighs = (
            bool(self._hooks["reweigh"])
            or Need.BLENDS in needs
            or self._vectors
            or self._signals is not signals_topk
        )
        self._changing = [column for column in fields if column.size > 1 and not column.fixed]

    def step(self, logits: Tensor, slots: Tensor) -> Tensor:
        """Decide what each row intends, and return the logits that the engine samples from.

        Parameters
        ----------
        logits
            ``[num_rows, >= vocab_size]``, never changed in place.
        slots
            ``[num_rows]`` int64; ``table.null_slot`` for rows without a request.

        Returns
        -------
        Tensor
            The same tensor if no live request has a method; otherwise a new one in which rows that
            asked for nothing are bit-for-bit what they were, and so are rows whose edited logits or
            concept token could not be used; see :mod:`tokenlens.core.soundness`.
        """
        if self.idle:
            return logits
        # What leaves is an ordinary tensor, which the engine may change in place. It is copied
        # once: copying a large vocabulary takes longer than editing it.
        ours = None
        if self._hooks["edit"]:
            with torch.no_grad():
                ours = logits.clone(memory_format=torch.contiguous_format)
        with torch.inference_mode():
            edited, intent, highest = self._decide(logits, ours, slots)
        with torch.no_grad():
            return _force(edited, intent.forced, intent.recorded, highest, in_place=edited is ours)

    def _decide(
        self, stock: Tensor, ours: Tensor | None, slots: Tensor
    ) -> tuple[Tensor, Intent, Tensor | None]:
        """Edited logits, intents, and each row's largest logit where logits are edited.

        ``ours`` is a copy of the stock logits, to be edited.
        """
        hooks = self._hooks
        logits = stock if ours is None else ours
        rows = self._with_tables(self.table.gather(slots, self._now))
        for method in hooks["control"]:
            method.control(rows)
        for method in hooks["edit"]:
            logits = method.edit(logits, rows)
        # [num_rows, width]: what thinking is made of; the engine samples from all logits
        seen = logits
        if self._holes is not None:
            seen = logits.index_fill(1, self._holes, -torch.inf)
        signals, proposal, facts, active = self._observe(seen, rows)
        for method in hooks["reweigh"]:
            method.reweigh(rows, signals, proposal)
        for method in hooks["propose"]:
            method.propose(rows, signals, proposal)
        for method in hooks["gate"]:
            method.gate(rows, signals, proposal)
        base = None
        if self._vectors:
            assert self._host is not None
            base = base_vectors(self._host, seen, rows, proposal)
        valid, highest = signals.valid, None
        if self._reweighs:
            valid = valid & soundness.keep_sound(rows, proposal, active & valid, base)
        if ours is not None:
            usable, highest = soundness.usable(logits, self.vocab_size)
            logits = torch.where((usable & valid)[:, None], logits, stock, out=ours)
            valid = valid & (usable >= rows[soundness.EDITS])
        if Need.SCORES in rows.needs:
            rows.choose(LOG_PROBABILITY, ~(active & valid), 0.0)
        if Need.FORCING in rows.needs:
            _continue_forcing(rows, proposal)
        intent = Intent(
            *(proposal.latent, proposal.forced, proposal.recorded),
            *(valid, *facts),
            *(proposal.weights, proposal.ids),
        )
        self._intents.put(slots, rows, intent)
        if base is not None:
            self._base.index_copy_(0, slots, torch.where(proposal.latent[:, None], base, 0.0))
        if proposal.scores is not None:
            self._scores.index_copy_(0, slots, proposal.scores)
        if Need.FULL_TRACE in rows.needs:
            notes = torch.where(valid[:, None], _recorded(rows, self.records), 0.0)
            self._records.index_copy_(0, slots, notes)
        return logits, intent, highest

    def _with_tables(self, rows: Rows) -> Rows:
        """Rows with what hooks look up beside their columns."""
        rows.vocab_size, rows.holes = self.vocab_size, self._holes
        rows.marker_tables = self.marker_table.tensors
        return rows

    def _observe(
        self, logits: Tensor, rows: Rows
    ) -> tuple[Signals, Proposal, tuple[Tensor, Tensor], Tensor]:
        """Signals, a proposal of nothing, entropy and maximum probability, and who asked."""
        asked = SignalRequest.of(rows)
        for method in self._hooks["request_signals"]:
            method.request_signals(rows, asked)
        statistics = Need.STATISTICS in rows.needs
        found = self._signals(
            logits,
            active=asked.active,
            inverse_temperature=asked.inverse_temperature,
            top_k=asked.top_k,
            top_p=asked.top_p,
            min_p=asked.min_p,
            max_entries=asked.max_entries,
            noise_temperature=asked.noise_temperature,
            seed=rows[SEED],
            position=rows[POSITION],
            vocab_size=self.vocab_size,
            width=self.width,
            statistics=statistics,
        )
        logsumexp, entropy, max_probability, probabilities, ids, weights, weight_ids = found
        # The op marks unusable rows with NaN.
        valid = logsumexp == logsumexp
        signals = Signals(
            entropy if statistics else None,
            max_probability if statistics else None,
            valid,
            probabilities,
            ids,
        )
        if Need.RAW_SIGNALS in rows.needs:
            signals = signals._replace(**self._raw_signals(logits, asked, rows))
        nowhere = rows.constant(False)
        proposal = Proposal(nowhere, nowhere, rows.constant(0), weights, weight_ids)
        return signals, proposal, (entropy, max_probability), asked.active

    def _raw_signals(self, logits: Tensor, asked: SignalRequest, rows: Rows) -> dict[str, Tensor]:
        """Entropy and maximum probability at temperature 1: a second look at the logits."""
        one = torch.ones_like(asked.top_k)
        found = self._signals(
            logits,
            active=asked.active,
            inverse_temperature=torch.ones_like(asked.inverse_temperature),
            top_k=one,
            top_p=torch.ones_like(asked.top_p),
            min_p=torch.zeros_like(asked.min_p),
            max_entries=one,
            noise_temperature=torch.zeros_like(asked.noise_temperature),
            seed=rows[SEED],
            position=rows[POSITION],
            vocab_size=self.vocab_size,
            width=1,
        )
        return {"raw_entropy": found[1], "raw_max_probability": found[2]}

    def commit(self, sampled: Tensor, slots: Tensor, advance: Tensor | None = None) -> Step | None:
        """Move requests on by the tokens that were sampled, and write their next inputs.

        Parameters
        ----------
        sampled
            ``[num_rows]`` int64.
        slots
            ``[num_rows]`` int64, the slots in the order of ``sampled``. The very tensor that was
            given to ``step`` is the fast way; another may have another order.
        advance
            ``[num_rows]`` bool; False for rows that were not sampled (a chunk of a prompt), whose
            intent is dropped. ``None`` means all.

        Returns
        -------
        Step or None
            The step's record, ``None`` if no live request has a method.
        """
        if self.idle:
            return None
        with torch.inference_mode():
            return self._commit(sampled, slots, advance)

    def _commit(self, sampled: Tensor, slots: Tensor, advance: Tensor | None) -> Step:
        rows, intent = self._intents.take(slots, self._now)
        self._with_tables(rows)
        # Engines pad a batch's finished rows; those tokens belong to nobody.
        going = rows[GOING]
        advance = going if advance is None else advance & going
        slots = torch.where(advance, slots, self.table.scratch_slot)
        if self._past is not None:
            self._past.record(slots, self.table, self._changing)
        before, position = rows[PHASE], rows[POSITION]
        rows.add(THINKING_TOKENS, rows.thinking)
        as_recorded = sampled == intent.recorded
        rows[PHASE], rows[GOING] = phases.advance(rows, before, sampled)
        going = rows[GOING]
        rows.add(POSITION, rows.constant(True))
        rows.add(GENERATED, rows.constant(True))
        if Need.FORCING in rows.needs:
            # A token that the engine put in the place of a forced one breaks the sequence in two,
            # and half an end marker ends nothing: it begins again.
            forcing = rows[FORCE_LENGTH] > 0
            rows.choose(FORCE_AT, forcing, torch.where(as_recorded, rows[FORCE_AT] + 1, 0))
            rows.choose(FORCE_LENGTH, forcing & (rows[FORCE_AT] >= rows[FORCE_LENGTH]), 0)
        rows.latent, rows.forced = intent.latent, intent.forced
        for method in self._hooks["commit"]:
            method.commit(rows, before, sampled)
        inside = rows.thinking
        if Need.AFTER_THINKING in rows.needs:
            inside = inside | rows[ANYWHERE]
        latent = rows.latent & (as_recorded | ~intent.forced) & inside & going
        forced = intent.forced & as_recorded
        rows.add(LATENT_STEPS, latent)
        rows.add(FORCED_STEPS, forced)
        rows.add(INVALID_STEPS, ~intent.valid)
        base_weight = None
        if self._vectors:
            base_weight = torch.where(latent, rows[BASE_WEIGHT], 0.0)
            self.feed.write_base(slots, self._base.index_select(0, slots), base_weight)
        self.feed.write(slots, latent, intent.weights, intent.ids, sampled, base_weight)
        if Need.EMBEDDING_NOISE in rows.needs:
            scale = torch.where(latent, rows[NOISE_SCALE], 0.0)
            self.feed.write_noise(slots, scale, rows[SEED], position)
        log_probability, scores = rows.constant(0.0), intent.weights[:, :0]
        if Need.SCORES in rows.needs:
            log_probability = rows[LOG_PROBABILITY]
            scores = self._scores.index_select(0, slots)
        notes = intent.weights[:, :0]
        if Need.FULL_TRACE in rows.needs:
            notes = self._records.index_select(0, slots)
        self.table.scatter(slots, rows)
        return Step(
            position, before, sampled, latent, forced, intent.valid, advance,
            intent.entropy, intent.max_probability, intent.weights, intent.ids,
            log_probability, scores, notes,
        )  # fmt: skip


def _recorded(rows: Rows, names: Sequence[str]) -> Tensor:
    """What methods recorded of the step, ``[num_rows, len(names)]`` float32."""
    nothing = torch.zeros_like(rows[INVERSE_TEMPERATURE])
    return torch.stack([rows.records.get(name, nothing).float() for name in names], dim=1)


def _continue_forcing(rows: Rows, proposal: Proposal) -> None:
    """A forced sequence wins over everything else, and is discrete unless a method says no."""
    forcing = rows[FORCE_LENGTH] > 0
    at = rows[FORCE_AT].clamp(max=FORCE_IDS.size - 1)
    proposal.force(forcing, rows[FORCE_IDS].gather(1, at[:, None])[:, 0])
    if proposal.mixes is not None:
        forcing = forcing & ~proposal.mixes
    proposal.latent = proposal.latent & ~forcing


def _force(
    logits: Tensor, forced: Tensor, ids: Tensor, highest: Tensor | None, in_place: bool
) -> Tensor:
    """Lift one token of the forced rows far above the others; all other values stay bit-equal."""
    place = ids[:, None]
    # Half precision ends at 65504; a quarter leaves the engine room to divide by a temperature.
    most = torch.finfo(logits.dtype).max / 4
    least = min(FORCED_LOGIT, most)
    lifted: float | Tensor = least
    if highest is not None:
        # A temperature of ours may have made logits that are larger than that.
        lifted = (4 * highest).clamp(least, most)[:, None]
    values = torch.where(forced[:, None], lifted, logits.gather(1, place))
    return logits.scatter_(1, place, values) if in_place else logits.scatter(1, place, values)
