"""The gate: whether a step is latent, from one signal and what was decided before.

A pure function on one number a row. It knows no method, no phase and no logits; SwiReasoning, LEAD,
SeLaR and ThinkRouter are settings of it (`tokenlens.methods._shared.gate.fields`).
"""

from typing import NamedTuple

import torch
from torch import Tensor


class GateRules(NamedTuple):
    """Settings, one a row; see :class:`tokenlens.spec.Gate`.

    Bounds are for a signal that goes latent where it is high; for the other direction the caller
    changes the sign of the signal and of both bounds.
    """

    # [num_rows] float32; -inf and +inf: no bound
    enter: Tensor
    leave: Tensor
    # [num_rows] bool
    enter_at_bound: Tensor
    trend: Tensor
    first_latent: Tensor
    # [num_rows] int64, steps
    dwell_latent: Tensor
    dwell_discrete: Tensor
    # [num_rows] int64; switches from latent to discrete
    max_switches: Tensor


class GateState(NamedTuple):
    """What a gate remembers, one a row."""

    # [num_rows] bool
    latent: Tensor
    started: Tensor
    # [num_rows] float32: the signal at the last switch
    reference: Tensor
    # [num_rows] int64: steps since the last switch, switches from latent to discrete
    stay: Tensor
    switches: Tensor


class Decision(NamedTuple):
    """One step of the gate."""

    state: GateState
    # [num_rows] bool: this step is the first latent one of a block, or the first discrete one
    entered: Tensor
    left: Tensor


def gate_step(
    signal: Tensor, state: GateState, rules: GateRules, may_enter: Tensor | bool = True
) -> Decision:
    """Decide one step.

    Parameters
    ----------
    signal
        ``[num_rows]`` float32.
    may_enter
        ``[num_rows]`` bool: False keeps a discrete row discrete.

    Returns
    -------
    Decision
        The first step of a request is latent by rule (``first_latent``) or by the bound; it is no
        switch, and its signal becomes the reference. A NaN goes nowhere.

    Source: the step function of SwiReasoning (arXiv 2510.05069, algorithm 1), with bounds beside
    its trend.
    """
    beginning = ~state.started
    stay = torch.where(beginning, 0, state.stay + 1)
    reached = (signal > rules.enter) | (rules.enter_at_bound & (signal == rules.enter))
    # Without a bound to reach, any number does.
    reached = reached | (rules.enter == -torch.inf)
    risen = ~rules.trend | (signal > state.reference)
    fallen = ~rules.trend | (signal < state.reference)
    capped = state.switches >= rules.max_switches
    entered = ~state.latent & reached & risen & (stay >= rules.dwell_discrete) & ~capped & may_enter
    left = state.latent & (signal < rules.leave) & fallen & (stay >= rules.dwell_latent)
    entered, left = entered & ~beginning, left & ~beginning
    at_first = (rules.first_latent | reached) & may_enter
    switched = entered | left
    return Decision(
        GateState(
            torch.where(beginning, at_first, (state.latent | entered) & ~left),
            state.started | beginning,
            torch.where(beginning | switched, signal, state.reference),
            torch.where(switched, 0, stay),
            state.switches + left,
        ),
        entered,
        left,
    )
