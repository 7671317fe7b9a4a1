"""A step's record from the columns that an engine read: one place, so that engines agree."""

from collections.abc import Mapping
from typing import Any

from tokenlens.spec.decoding import TraceConfig
from tokenlens.trace.records import PHASE_NAMES, TraceStep


def step_record(columns: Mapping[str, Any], config: TraceConfig, scored: bool) -> TraceStep:
    """A record of one row of one step.

    Parameters
    ----------
    columns
        The row's values by the names of ``core.report.StepReport``, as plain data, ``phase`` as the
        core's number; ``weights``, ``ids`` and ``scores`` instead of ``entries``; ``records`` as
        ``core.recorder.edits_and_switch`` reads them.
    config
        How many places of the concept token are looked at.
    scored
        Whether the request's own methods have scores; otherwise they are a neighbour's.
    """
    values = dict(columns)
    weights = values.pop("weights")[: config.most_entries(values["latent"])]
    ids, scores = values.pop("ids"), values.pop("scores")
    edits, switch = values.pop("records")
    # A contrastive push can make the first entry's weight negative.
    live = [place for place, weight in enumerate(weights) if weight != 0]
    return TraceStep(
        **{**values, "phase": PHASE_NAMES[values["phase"]]},
        entries=tuple((ids[place], weights[place]) for place in live),
        scores=tuple(scores[place] for place in live) if scored and scores else (),
        edits=edits,
        switch=switch,
    )
