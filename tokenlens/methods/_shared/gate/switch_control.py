"""Switch control of SwiReasoning and LEAD: texts that are injected after so many switches.

The gate counts the switches from latent to discrete. From ``after`` to twice as many, each one
injects a text that ends thinking; the next injects a text that begins the answer, and the request
ends a number of tokens later. Knows of the gate which rows have just left, and how often.

``published`` differs from the default so (each line is a field of the config):

=============================  ===========================  =====================================
what                           default                      ``published`` (authors' code)
=============================  ===========================  =====================================
an injected token is fed as    itself                       whatever the gate says: the mixture,
                                                            with its anchor or blend, unless the
                                                            mode is discrete
                                                            (``injected_as_token``)
a switch to discrete inside    waits: its text comes when   replaces what is left of the text,
an injected text               this one is written          and its blend is fed (``restarts``)
an end of thinking that the    is not looked at: it is in   ends latent thinking for good
model would have written in    no text                      (``hidden_end_locks``)
place of an injected token
an injected end of thinking    ends latent thinking         does not (``injected_end_locks``)
the answer's beginning         comes once                   at each later switch (``rearms``)
=============================  ===========================  =====================================

Not reproduced: a request that is over ends with an end-of-text token. The code samples a token and
then puts the injected one in its place; here the sampler is given the injected one, and what it
would have sampled is the most probable token, or at a ``temperature`` a draw of ours.
"""

import torch
from tokenlens_kernels import philox
from torch import Tensor

from tokenlens.core.columns import (
    ANYWHERE,
    END_IDS,
    END_LENGTH,
    EOS_IDS,
    FORCE_LENGTH,
    INVERSE_TEMPERATURE,
    MAX_FORCED_TOKENS,
    POSITION,
    SEED,
    Field,
    Value,
)
from tokenlens.core.forcing import start_forcing
from tokenlens.core.method import Admission
from tokenlens.core.proposal import Proposal, Signals
from tokenlens.core.rows import Rows
from tokenlens.methods._shared.gate.switching import Switching
from tokenlens.spec import SpecError
from tokenlens.spec.needs import Need

AFTER = Field("switch_control.after", "int")  # 0 = off
CONVERGE = Field("switch_control.converge", "int", -1, size=MAX_FORCED_TOKENS, fixed=True)
CONVERGE_LENGTH = Field("switch_control.converge_length", "int")
TERMINATE = Field("switch_control.terminate", "int", -1, size=MAX_FORCED_TOKENS, fixed=True)
TERMINATE_LENGTH = Field("switch_control.terminate_length", "int")
ANSWER_TOKENS = Field("switch_control.answer_tokens", "int")
LEFT_TOKENS = Field("switch_control.left_tokens", "int", -1)  # -1 = the request is not to end
INJECTING = Field("switch_control.injecting", "bool", False)
WAITING = Field("switch_control.waiting", "bool", False)  # a switch has still to have its text
REARMS = Field("switch_control.rearms", "bool", False)
AS_TOKEN = Field("switch_control.injected_as_token", "bool", True)
RESTARTS = Field("switch_control.restarts", "bool", False)
HIDDEN_LOCKS = Field("switch_control.hidden_end_locks", "bool", False)
TEMPERATURE = Field("switch_control.temperature", "float")
HIDDEN = Field("switch_control.hidden", "bool", False)  # of the step that is pending

FIELDS = (
    *(AFTER, CONVERGE, CONVERGE_LENGTH, TERMINATE, TERMINATE_LENGTH, ANSWER_TOKENS, LEFT_TOKENS),
    *(INJECTING, WAITING, REARMS, AS_TOKEN, RESTARTS, HIDDEN_LOCKS, TEMPERATURE, HIDDEN),
)


def columns(config: Switching, admission: Admission) -> dict[Field, Value]:
    """Column values of a new request; none without switch control.

    Raises
    ------
    SpecError
        A model without an end-of-text token, or a text that its tokenizer cannot write.
    """
    control = config.switch_control
    if control is None:
        return {}
    field = f"{config.method}.switch_control"
    assert admission.encode is not None
    if not admission.eos_ids:
        raise SpecError.of(
            field,
            control,
            "null without an end-of-text token (eos_token_id) in the generation config",
        )
    converge = admission.end_ids
    if control.converge is not None:
        converge = admission.encode(control.converge, f"{field}.converge")
    terminate = admission.encode(control.terminate, f"{field}.terminate")
    return {
        AFTER: control.after,
        CONVERGE: converge,
        CONVERGE_LENGTH: len(converge),
        TERMINATE: terminate,
        TERMINATE_LENGTH: len(terminate),
        ANSWER_TOKENS: control.answer_tokens,
        TEMPERATURE: control.temperature,
        REARMS: config.rules.rearms,
        AS_TOKEN: config.rules.injected_as_token,
        RESTARTS: config.rules.restarts,
        HIDDEN_LOCKS: config.rules.hidden_end_locks,
    }


def propose(rows: Rows, signals: Signals, proposal: Proposal) -> None:
    """End what is over; say which injected tokens are fed as mixtures, and look beneath them."""
    proposal.force(rows[LEFT_TOKENS] == 0, rows[EOS_IDS][:, 0])
    proposal.mixes = rows[INJECTING] & ~rows[AS_TOKEN]
    if Need.AFTER_THINKING in rows.needs:
        looked = rows[INJECTING] & rows[HIDDEN_LOCKS] & signals.valid & (rows[END_LENGTH] == 1)
        rows[HIDDEN] = looked & _would_end(rows, signals)


def _would_end(rows: Rows, signals: Signals) -> Tensor:
    """Whether the engine would sample the end of thinking now: ``[num_rows]`` bool."""
    p = signals.probabilities
    ends = signals.ids == rows[END_IDS][:, :1]
    # Of the entries, at the engine's temperature instead of the mixture's. At 0 the first is drawn.
    exponent = 1 / (rows[TEMPERATURE] * rows[INVERSE_TEMPERATURE]).clamp(min=1e-6)
    q = (p / p[:, :1].clamp(min=torch.finfo(p.dtype).tiny)).pow(exponent[:, None])
    share = torch.where(ends, q, 0.0).sum(dim=1) / q.sum(dim=1).clamp(min=1)
    draw = philox.uniform(rows[SEED], philox.offset(rows[POSITION], 0, philox.REPLACE))
    return torch.where(rows[TEMPERATURE] > 0, draw < share, ends[:, 0])


def commit(rows: Rows, left: Tensor, switches: Tensor) -> None:
    """Count the tokens that are left, and inject what the newest switch asks for.

    Parameters
    ----------
    left
        ``[num_rows]`` bool: rows that have switched from latent to discrete at this step.
    switches
        ``[num_rows]`` int64: how many times they have.
    """
    after, left_tokens = rows[AFTER], rows[LEFT_TOKENS]
    left_tokens = torch.where(left_tokens > 0, left_tokens - 1, left_tokens)
    silent = rows[FORCE_LENGTH] == 0
    restarts = rows[INJECTING] & rows[RESTARTS]
    due = (left | rows[WAITING]) & (after > 0) & (rows[ANYWHERE] | rows.thinking)
    free = silent | restarts
    rows[WAITING] = due & ~free
    due = due & free
    converge = due & (switches >= after) & (switches <= 2 * after)
    terminate = due & (switches > 2 * after) & (rows[REARMS] | (left_tokens < 0))
    starts = converge | terminate
    rows.choose(FORCE_LENGTH, starts, 0)
    start_forcing(rows, converge, rows[CONVERGE], rows[CONVERGE_LENGTH])
    start_forcing(rows, terminate, rows[TERMINATE], rows[TERMINATE_LENGTH])
    injecting = ((rows[INJECTING] & ~silent) | starts) & (rows[FORCE_LENGTH] > 0)
    # The step that arms counts as the first.
    left_tokens = torch.where(terminate, rows[ANSWER_TOKENS] - 1, left_tokens)
    rows[LEFT_TOKENS] = left_tokens
    # A request that is over does not finish its text.
    over = injecting & (left_tokens == 0)
    rows.choose(FORCE_LENGTH, over, 0)
    rows[INJECTING] = injecting & ~over
