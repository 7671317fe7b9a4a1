"""How the thinking of a request went, in one word: what reports count."""

from typing import Literal, get_args

from tokenlens.spec import DecodingSpec
from tokenlens.spec.phase import NONE
from tokenlens.trace.records import PhaseName, Trace, TraceCounts, never_opened

Finish = Literal["ended", "budget", "cold_stop", "never_ended", "never_opened", "no_thinking"]
"""``ended``: by the model itself. ``budget``, ``cold_stop``: a method wrote the end.
``never_ended``: it went on to the text's end. ``never_opened``: what was asked for acts in
thinking, and there was none. ``no_thinking``: there was none, and nobody had asked for any."""

FINISHES: tuple[Finish, ...] = get_args(Finish)


def finish_of(spec: DecodingSpec, counts: TraceCounts, final_phase: PhaseName) -> Finish:
    """How the thinking of a request went that has ended.

    Parameters
    ----------
    spec
        As its trace has it.
    """
    if never_opened(spec, counts, final_phase):
        return "never_opened"
    ends = any(one.is_budget or one.method == "answer_now" for one in spec.methods)
    if final_phase == "thinking":
        # Where nothing could have ended it, all is thought to the end.
        endless = spec.phase.markers == NONE and not ends
        endless = endless and spec.phase.think_end is None and spec.phase.end_after is None
        return "ended" if endless else "never_ended"
    if counts.thinking_tokens == 0:
        return "no_thinking"
    if counts.cold_stops:
        return "cold_stop"
    # A latent step's own token may be decided by tokenlens too.
    if ends and counts.forced_steps not in (0, counts.latent_steps):
        return "budget"
    return "ended"


def finish(trace: Trace) -> Finish:
    """How a trace's thinking went."""
    return finish_of(trace.spec, trace.counts, trace.final_phase)
