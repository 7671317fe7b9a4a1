"""Steps of an engine that drafts: a row is decided as if the drafts before it were accepted.

An engine that speculates has several rows of a request in one step: the one behind its newest
token, and one behind each draft. Drafts are committed one after the other, which gives each row the
state that it would have. Once the engine says how many it has accepted, what is behind them is
taken back, and the token that it sampled there is committed with what was intended there. An
accepted draft is the sampled token, so that nothing else of it is decided again.

Reads no device value on the host: only the number of offsets is known there.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tokenlens.core.columns import GENERATED
from tokenlens.core.pending import Intent, PendingDecision, StepDecision
from tokenlens.core.pipeline import Core
from tokenlens.core.report import StepReport


class DraftReport(NamedTuple):
    """What a step with drafts was.

    Attributes
    ----------
    drafts
        One record for each offset but the last; of a row those before ``last`` count.
    newest
        The record of each row's newest token, which stands at the offset ``last``.
    last
        ``[num_requests]`` int64.
    states
        Behind each of ``drafts``, the table's ``ints`` of the rows: what is counted.
    """

    drafts: Sequence[StepReport]
    newest: StepReport
    last: Tensor
    states: Sequence[Tensor]


class DraftSteps:
    """The steps of one core beside drafts. Between ``step`` and ``commit`` no request may come.

    Parameters
    ----------
    core
        Keeps as many states to take back (``rewind_steps``) as there are drafts, at least.
    nowhere
        A row of the core's history that nobody reads, ``None`` where it has no history: what is fed
        behind a draft is the draft.
    """

    def __init__(self, core: Core, nowhere: int | None = None) -> None:
        self.core, self._nowhere = core, nowhere
        self._slots: Tensor | None = None
        self._advance: Tensor | None = None
        # [num_requests]: tokens before the step
        self._generated: Tensor | None = None
        self._pending: list[PendingDecision] = []
        self._drafts: list[StepReport] = []
        self._states: list[Tensor] = []

    def step(
        self, logits: Tensor, slots: Tensor, places: Tensor, drafts: Tensor, advance: Tensor
    ) -> Tensor:
        """Decide what each row intends, and return the logits that the engine verifies with.

        Parameters
        ----------
        logits
            ``[num_rows, >= vocab_size]``, edited where they lie. If this raises, they are what they
            were, and so is every request.
        slots
            ``[num_requests]`` int64; ``table.null_slot`` for those without a spec.
        places
            ``[offsets, num_requests]`` int64: the row of each offset, 0 of which is behind the
            newest token. Where a request has fewer drafts: its row at offset 0. Without any
            draft, rows are in the order of the slots.
        drafts
            ``[offsets - 1, num_requests]`` int64: the tokens behind which the offsets from 1 on
            are; negative where there is none, or one that the engine is sure to reject.
        advance
            ``[num_requests]`` bool; False for those that are not sampled (a chunk of a prompt).
        """
        core = self.core
        if core.idle:
            self.forget()
            return logits
        steps = core.rewind_steps
        if len(drafts) > steps:
            raise ValueError(
                f"drafts: got {len(drafts)}; allowed: at most the {steps} that a core with"
                f" rewind_steps={steps} can take back"
            )
        null = core.table.null_slot
        with torch.inference_mode():
            # Gathered, so that it is what it was before the drafts.
            self._generated = core.table.column(GENERATED).index_select(0, slots)
            self._advance = advance & (slots != null)
            if len(drafts):
                # [offsets - 1, num_requests]: drafts that may be accepted, and whose row has a slot
                there = self._advance & (drafts >= 0).cumprod(dim=0).bool()
                behind = torch.where(there, slots, null)
                drafts = drafts.clamp(min=0)
        self._slots, here = slots, slots
        self._pending, self._drafts, self._states = [], [], []
        edited, entries = [], None
        if self._nowhere is not None and len(drafts):
            entries = torch.full_like(slots, self._nowhere)
        # A step without drafts is one of rows as they lie.
        alone = len(drafts) == 0 and len(logits) == len(slots)
        try:
            for offset, place in enumerate(places):
                seen = logits if alone else logits.index_select(0, place)
                edited.append(core.step(seen, here, in_place=True))
                assert core._pending is not None
                # The last one is committed by nobody but :meth:`commit`.
                last = offset == len(drafts)
                self._pending.append(core._pending if last else _kept(core._pending))
                if not last:
                    report = core.commit(drafts[offset], here, there[offset], entries)
                    assert report is not None
                    self._drafts.append(report)
                    self._states.append(core.table.ints.index_select(0, slots))
                    here = behind[offset]
        except BaseException:
            core._pending = None
            self.forget()
            core.rewind_rows(slots, self._generated)
            raise
        if alone:
            return edited[0]
        # Rows at offset 0 last: they stand in for offsets that a request does not have.
        for place, values in zip(reversed(places), reversed(edited), strict=True):
            logits.index_copy_(0, place, values)
        return logits

    def forget(self) -> None:
        """Drop a step that is not committed: a warm-up."""
        self._slots = None

    def commit(
        self, sampled: Tensor, num_sampled: Tensor, entries: Tensor | None = None
    ) -> DraftReport | None:
        """Move requests on by the drafts that were accepted and the token behind them.

        Parameters
        ----------
        sampled
            ``[num_requests, offsets]`` int64, of which the first ``num_sampled`` count.
        num_sampled
            ``[num_requests]``: accepted drafts, and one more; 0 for requests that did not advance.
        entries
            ``[num_requests]`` int64: where what is fed next goes, as for :meth:`Core.commit`.

        Returns
        -------
        DraftReport or None
            ``None`` if no live request has a method.
        """
        core, slots, self._slots = self.core, self._slots, None
        if core.idle or slots is None:
            return None
        assert self._generated is not None
        assert self._advance is not None
        with torch.no_grad():
            last = (num_sampled.long() - 1).clamp(min=0)
            core._pending = self._pending[0]
            if self._drafts:
                # Nothing was committed behind an end of text, and nothing is.
                core.rewind_rows(slots, self._generated + last)
                core._pending = _at(self._pending, last, core, slots)
            token = sampled.long().gather(1, last[:, None])[:, 0]
            moves = self._advance & (num_sampled > 0)
            token = torch.where(moves, token, 0)
        newest = core.commit(token, slots, moves, entries)
        assert newest is not None
        self._pending = []
        return DraftReport(self._drafts, newest, last, self._states)


def _kept(pending: PendingDecision) -> PendingDecision:
    """A decision that its own commit leaves as it is: that writes its columns beside the step's."""
    if pending.compiled is not None:
        return pending
    written, intent, _ = pending.decision()
    decision = StepDecision(dict(written), intent)
    return PendingDecision(pending.slots, lambda: decision)


def _at(
    pending: Sequence[PendingDecision], offset: Tensor, core: Core, slots: Tensor
) -> PendingDecision:
    """What was decided of each row at its own offset."""
    place = offset * len(slots) + torch.arange(len(slots), device=slots.device)
    forms = {id(one.compiled[0]) if one.compiled else None for one in pending}
    if len(forms) == 1 and pending[0].compiled is not None:
        form = pending[0].compiled[0]
        halves = [one.compiled[1] for one in pending if one.compiled is not None]
        handed = [_pick(values, place) for values in zip(*halves, strict=True)]
        made = partial(form.decision, core, slots, handed)
        return PendingDecision(slots, made, (form, handed))
    decided = [one.decision() for one in pending]
    written = {
        column: _pick([one.written[column] for one in decided], place)
        for column in decided[0].written
    }
    parts: list[Any] = [
        None if values[0] is None else _pick(values, place)
        for values in zip(*(one.intent for one in decided), strict=True)
    ]
    decision = StepDecision(written, Intent(*parts))
    return PendingDecision(slots, lambda: decision)


def _pick(values: Sequence[Tensor], place: Tensor) -> Tensor:
    """``[num_rows, ...]`` of each offset, one behind the other; returns each row's own."""
    return torch.cat(tuple(values)).index_select(0, place)
