"""The step pipeline: logits in, forced tokens and the next inputs out, for a whole batch at once.

One step has two halves. ``step`` looks at the logits and writes down what each row intends; it
changes no request's state, so an engine may call it for a row and then not sample. ``commit`` gets
the tokens that were really sampled and moves exactly those requests on. Neither reads a device
value on the host.
"""

from functools import partial, reduce
from operator import or_

import torch
from torch import Tensor

from tokenlens.core import phases, soundness
from tokenlens.core.columns import (
    ALIVE,
    ANYWHERE,
    BASE_WEIGHT,
    FORCED_STEPS,
    GENERATED,
    INVALID_STEPS,
    LATENT_STEPS,
    LOG_PROBABILITY,
    NOISE_SCALE,
    PHASE,
    POSITION,
    SEED,
    THINKING_TOKENS,
)
from tokenlens.core.engine_vectors import base_vectors
from tokenlens.core.forcing import advance_forcing, continue_forcing, force_logits, leave_forbidden
from tokenlens.core.lifecycle import Lifecycle
from tokenlens.core.logit_edits import LogitEdits
from tokenlens.core.pending import Intent, PendingDecision, StepDecision
from tokenlens.core.proposal import Proposal, SignalRequest
from tokenlens.core.report import StepReport
from tokenlens.core.rows import Rows
from tokenlens.core.signals import observe
from tokenlens.errors import MethodError
from tokenlens.spec.needs import Need


class Core(Lifecycle):
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
    engine_vectors
        The engine's vectors, for methods that need more than concept tokens; ``None``: it has none.
    layers
        The engine's way to its decoder layers; ``None``: it has none.
    engine
        Its name, for the refusal of what it does not host.
    max_markers
        Different markers of several tokens at once; ``None``: as many as slots.
    history
        Weights and ids ``[entries, <= width]`` of an engine that keeps every concept token; each
        commit says where its rows' go. ``None``: the newest of each slot is kept.

    Notes
    -----
    The width of concept tokens is fixed for the life of the core and not chosen by the batch, so
    that sums over entries round the same whatever else is in the batch.
    """

    def step(self, logits: Tensor, slots: Tensor, *, in_place: bool = False) -> Tensor:
        """Decide what each row intends, and return the logits that the engine samples from.

        Parameters
        ----------
        logits
            ``[num_rows, >= vocab_size]``.
        slots
            ``[num_rows]`` int64; ``table.null_slot`` for rows without a request.
        in_place
            The engine lets the logits be changed: they are edited where they lie. If this raises,
            they are what they were.

        Returns
        -------
        Tensor
            The same tensor if no live request has a method or it was edited in place, else a new
            one. Rows that asked for nothing are bit-for-bit what they were, and so are rows whose
            edited logits or concept token could not be used; see :mod:`tokenlens.core.soundness`.
        """
        if self.idle:
            return logits
        form = None if self.forms is None else self.forms.of(self, logits, in_place)
        if form is not None:
            with torch.no_grad():
                edited, handed = form.run_step(self, logits, slots)
            made = partial(form.decision, self, slots, handed)
            self._pending = PendingDecision(slots, made, (form, handed))
            return edited
        edits = LogitEdits(logits, in_place)
        try:
            with torch.inference_mode():
                edited, decision, highest = self._decide(edits, slots)
        except BaseException:
            edits.undo()
            raise
        self._pending, intent = PendingDecision(slots, lambda: decision), decision.intent
        # What leaves is an ordinary tensor, which the engine may change in place.
        with torch.no_grad():
            ours = in_place or edited is not logits
            return force_logits(edited, intent.forced, intent.recorded, highest, in_place=ours)

    def _decide(
        self, edits: LogitEdits, slots: Tensor
    ) -> tuple[Tensor, StepDecision, Tensor | None]:
        """Edited logits, the decision, and each row's largest logit where logits are edited."""
        hooks = self._hooks
        logits = edits.stock
        rows = self._with_tables(self.table.gather(slots, self._now))
        phases.end_silently(rows)
        rows.edits = edits
        for method in hooks["control"]:
            method.control(rows)
        for method in hooks["edit"]:
            logits = method.edit(logits, rows)
        # [num_rows, width]: what thinking is made of; the engine samples from all logits
        seen = logits
        if self._holes is not None:
            seen = logits.index_fill(1, self._holes, -torch.inf)
        asked = SignalRequest.of(rows)
        for method in hooks["request_signals"]:
            method.request_signals(rows, asked)
        found = observe(self._signals, seen, rows, asked, self.width)
        signals = found.signals
        nowhere = rows.constant(False)
        proposal = Proposal(nowhere, nowhere, rows.constant(0), found.weights, found.ids)
        for method in hooks["reweigh"]:
            method.reweigh(rows, signals, proposal)
        for method in hooks["propose"]:
            method.propose(rows, signals, proposal)
        for method in hooks["gate"]:
            method.gate(rows, signals, proposal)
        base = None
        if self._vectors:
            assert self._engine_vectors is not None
            base = base_vectors(self._engine_vectors, seen, rows, proposal)
        valid, highest = signals.valid, None
        if self._reweighs:
            valid = valid & soundness.keep_sound(rows, proposal, asked.active & valid, base)
        if hooks["edit"]:
            usable, highest = soundness.usable(logits, self.vocab_size)
            logits = edits.settle(logits, usable & valid)
            valid = valid & (usable >= rows[soundness.EDITS])
        if Need.SCORES in rows.needs:
            rows.choose(LOG_PROBABILITY, ~(asked.active & valid), 0.0)
        if Need.FORCING in rows.needs:
            continue_forcing(rows, proposal)
        if Need.ONE_BLOCK in rows.needs:
            leave_forbidden(rows, proposal, logits)
        if self._outside:
            theirs = reduce(or_, (rows[method.on] for method in self._outside))
            valid = valid & soundness.keep_known(rows, proposal, theirs)
        if base is not None:
            base = torch.where(proposal.latent[:, None], base, 0.0)
        records = None
        if Need.FULL_TRACE in rows.needs:
            records = torch.where(valid[:, None], rows.stacked_records(self.records), 0.0)
        intent = Intent(
            *(proposal.latent, proposal.forced, proposal.recorded),
            *(valid, found.entropy, found.max_probability),
            *(proposal.weights, proposal.ids),
            *(base, proposal.scores, records),
        )
        # Rows wait for their commit: they must not hold the logits.
        del rows.edits
        return logits, StepDecision(rows.written, intent, rows), highest

    def _with_tables(self, rows: Rows) -> Rows:
        """Rows with what hooks look up beside their columns."""
        rows.vocab_size, rows.holes = self.vocab_size, self._holes
        rows.marker_tables, rows.layers = self.marker_table.tensors, self._layers
        return rows

    def commit(
        self,
        sampled: Tensor,
        slots: Tensor,
        advance: Tensor | None = None,
        entries: Tensor | None = None,
    ) -> StepReport | None:
        """Move requests on by the tokens that were sampled, and write their next inputs.

        Parameters
        ----------
        sampled
            ``[num_rows]`` int64.
        slots
            ``[num_rows]`` int64, the slots in the order of ``sampled``. The very tensor that was
            given to the last ``step`` is the fast way; another may have another order. Of what that
            step did not decide, the tokens are taken as they are.
        advance
            ``[num_rows]`` bool; False for rows that were not sampled (a chunk of a prompt), whose
            intent is dropped. ``None`` means all.
        entries
            ``[num_rows]`` int64: the rows of the history that the next inputs go to; several may
            name one that nobody reads. Given where the core has a history, and only there.

        Returns
        -------
        StepReport or None
            The step's record, ``None`` if no live request has a method.
        """
        if self.idle:
            return None
        pending, self._pending = self._pending, None
        if pending is not None and pending.compiled is not None and pending.is_of(slots):
            form, handed = pending.compiled
            if advance is None:
                advance = torch.ones_like(slots, dtype=torch.bool)
            given = (slots, advance, slots if entries is None else entries)
            with torch.no_grad():
                return StepReport(*form.run_commit(self, sampled, *given, handed))
        with torch.inference_mode():
            return self._commit(sampled, slots, advance, entries, pending)

    def _commit(
        self,
        sampled: Tensor,
        slots: Tensor,
        advance: Tensor | None,
        entries: Tensor | None,
        pending: PendingDecision | None,
    ) -> StepReport:
        if pending is None:
            rows = self.table.gather(slots, self._now)
            intent = Intent.nothing(len(slots), self.width, self.device)
        else:
            rows, intent = pending.take(self.table, slots, self._now)
        self._with_tables(rows)
        # Engines pad a batch's finished rows; those tokens are no request's.
        alive = rows[ALIVE]
        advance = alive if advance is None else advance & alive
        slots = torch.where(advance, slots, self.table.scratch_slot)
        if self._snapshots is not None:
            self._snapshots.record(slots, self.table, self._changing)
        before, position = rows[PHASE], rows[POSITION]
        rows.add(THINKING_TOKENS, rows.thinking)
        as_recorded = sampled == intent.recorded
        rows[PHASE], rows[ALIVE] = phases.advance(rows, before, sampled)
        if Need.BLOCKS in rows.needs:
            phases.begin_block(rows, before)
        alive = rows[ALIVE]
        rows[POSITION], rows[GENERATED] = position + 1, rows[GENERATED] + 1
        if Need.FORCING in rows.needs:
            advance_forcing(rows, as_recorded)
        rows.latent, rows.forced = intent.latent, intent.forced
        for method in self._hooks["commit"]:
            try:
                method.commit(rows, before, sampled)
            except MethodError as error:
                # Of a method from outside, which left the rows as they were
                if self.contained is None:
                    raise
                self.contained[method.name] = error
        inside = rows.thinking
        if Need.AFTER_THINKING in rows.needs:
            inside = inside | rows[ANYWHERE]
        latent = rows.latent & (as_recorded | ~intent.forced) & inside & alive
        forced = intent.forced & as_recorded
        rows.add(LATENT_STEPS, latent)
        rows.add(FORCED_STEPS, forced)
        rows.add(INVALID_STEPS, ~intent.valid)
        base_weight = None
        if intent.base is not None:
            base_weight = torch.where(latent, rows[BASE_WEIGHT], 0.0)
            self.next_input.write_base(slots, intent.base, base_weight)
        into = slots if entries is None else entries
        self.next_input.write(into, latent, intent.weights, intent.ids, sampled, base_weight)
        if Need.EMBEDDING_NOISE in rows.needs:
            scale = torch.where(latent, rows[NOISE_SCALE], 0.0)
            self.next_input.write_noise(slots, scale, rows[SEED], position)
        nothing, scores, records = intent.weights[:, :0], intent.scores, intent.records
        self.table.scatter(slots, rows)
        return StepReport(
            position, before, sampled, latent, forced, intent.valid, advance,
            intent.entropy, intent.max_probability, intent.weights, intent.ids,
            rows.constant(0.0) if scores is None else rows[LOG_PROBABILITY],
            nothing if scores is None else scores, nothing if records is None else records,
        )  # fmt: skip
