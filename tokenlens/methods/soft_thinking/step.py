"""Soft Thinking (arXiv 2505.15778, sections 3.2 and 3.3): concept tokens and Cold Stop.

ThinkRouter, Latent-GRPO and Soft Tokens are built on it: other defaults, and what their own methods
add to it.

While a request thinks, its next input is the probability-weighted mixture of the token embeddings
that survive temperature, top-k, top-p and min-p; the visible token is the mixture's top entry.
Cold Stop ends thinking after ``patience`` steps in a row of low entropy. The entropy is the full
vocabulary's, in nats, after temperature and before every filter. The answer is sampled by the
engine with the user's own parameters.

==================================  =======================  ================================
what                                default                  ``published`` (authors' code)
==================================  =======================  ================================
latent from                         the think marker on      the first generated token
forced end of thinking              the whole end marker     its last token
answer                              the engine's sampler     top entry of the concept token
Cold Stop's counter in the answer   ignored                  ends the request
end-of-text on top while latent     ends the request         the same (``eos_while_latent``)
==================================  =======================  ================================

Not reproduced: the reference keeps every token tied with the k-th largest, here the lower id wins;
it sums mixtures in the table's dtype, here in float32.
"""

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from tokenlens.core.columns import (
    BASE_WEIGHT,
    DENSE,
    END_IDS,
    END_LENGTH,
    EOS_IDS,
    FORCE_LENGTH,
    INVERSE_TEMPERATURE,
    MAX_ENTRIES,
    MIN_P,
    PHASE,
    TOP_K,
    TOP_P,
    Field,
    Phase,
    Value,
)
from tokenlens.core.forcing import start_forcing
from tokenlens.core.marker_columns import written_end
from tokenlens.core.method import Admission, Method
from tokenlens.core.proposal import Proposal, SignalRequest, Signals
from tokenlens.core.rows import Rows, is_eos
from tokenlens.methods._shared.logits import BAN
from tokenlens.methods.latent_grpo.config import LatentGrpo
from tokenlens.methods.soft_thinking.config import ConceptTokens
from tokenlens.spec import SpecError
from tokenlens.spec.needs import Need
from tokenlens.spec.registry import AnyMethod

COLDEST = 1e-6
"""Temperature 0 is computed at this one, with top-k 1."""

THRESHOLD = Field("soft_thinking.cold_stop_threshold", "float")  # nats; 0 = off
PATIENCE = Field("soft_thinking.cold_stop_patience", "int", 1)
COUNTER = Field("soft_thinking.cold_stop_counter", "int")
COLD_STOPS = Field("soft_thinking.cold_stops", "int")
FORBID_EOS = Field("soft_thinking.forbid_eos", "bool", False)
GREEDY_ANSWER = Field("soft_thinking.greedy_answer", "bool", False)
ABORT_ANSWER = Field("soft_thinking.abort_answer", "bool", False)
ABORTED = Field("soft_thinking.aborted", "bool", False)


def cold_stop(
    entropy: Tensor, counter: Tensor, threshold: Tensor, patience: Tensor
) -> tuple[Tensor, Tensor]:
    """One step of Cold Stop (arXiv 2505.15778, section 3.3).

    Parameters
    ----------
    entropy, threshold
        ``[num_rows]`` float32 in nats; a threshold of 0 switches it off.
    counter, patience
        ``[num_rows]`` int64, steps.

    Returns
    -------
    counter, fires
        The new counter and, as a bool, whether thinking ends at this step.
    """
    counts = (entropy < threshold) & (threshold > 0)
    counter = torch.where(counts, counter + 1, 0)
    return counter, counter >= patience


class SoftThinkingMethod(Method):
    """The step function of Soft Thinking over the rows of a batch."""

    counters: ClassVar[Mapping[str, Field]] = {"cold_stops": COLD_STOPS}

    def __init__(self) -> None:
        super().__init__(
            "soft_thinking",
            *(THRESHOLD, PATIENCE, COUNTER, COLD_STOPS),
            *(FORBID_EOS, GREEDY_ANSWER, ABORT_ANSWER, ABORTED),
        )

    def serves(self, config: AnyMethod) -> bool:
        return isinstance(config, (ConceptTokens, LatentGrpo))

    def admit(self, config: AnyMethod, admission: Admission) -> Mapping[Field, Value]:
        settings, rules = _settings(config), _settings(config).rules
        for name in ("top_k", "max_entries"):
            value = getattr(settings, name)
            if value > admission.vocab_size:
                raise SpecError.of(
                    f"{config.method}.{name}",
                    value,
                    f"at most the vocabulary's {admission.vocab_size}",
                )
        needs = {
            "eos_while_latent": settings.eos_while_latent == "forbid",
            "quirks.abort_answer_on_low_entropy": rules.abort_answer_on_low_entropy
            and settings.cold_stop is not None,
        }
        for name, needed in needs.items():
            if needed and not admission.eos_ids:
                raise SpecError.of(
                    f"{config.method}.{name}",
                    True if name.startswith("quirks.") else settings.eos_while_latent,
                    "this only with an end-of-text token (eos_token_id) in the generation config",
                )
        full = getattr(config, "mixture", "top_k") == "full"
        threshold, patience = 0.0, 1
        if settings.cold_stop is not None:
            threshold, patience = settings.cold_stop.entropy_threshold, settings.cold_stop.patience
            if settings.cold_stop.entropy_unit == "fraction":
                threshold *= math.log(admission.vocab_size)
        return {
            INVERSE_TEMPERATURE: 1 / max(settings.temperature, COLDEST),
            TOP_K: settings.top_k if settings.temperature > 0 else 1,
            TOP_P: settings.top_p,
            MIN_P: settings.min_p,
            MAX_ENTRIES: settings.max_entries,
            THRESHOLD: threshold,
            PATIENCE: patience,
            FORBID_EOS: settings.eos_while_latent == "forbid",
            GREEDY_ANSWER: rules.greedy_answer,
            ABORT_ANSWER: rules.abort_answer_on_low_entropy,
            DENSE: full,
            BASE_WEIGHT: float(full),
        }

    def needs(self, config: AnyMethod) -> Need:
        if _settings(config).cold_stop is None:
            return Need.NOTHING
        return Need.FORCING | Need.STATISTICS

    def edits(self, config: AnyMethod) -> bool:
        return _settings(config).eos_while_latent == "forbid"

    def edit(self, logits: Tensor, rows: Rows) -> Tensor:
        forbidding = rows[self.on] & rows[FORBID_EOS] & rows.thinking
        # [num_rows, 8] int64; unused places repeat the first id, rows without any point at id 0
        ids = rows[EOS_IDS]
        ids = torch.where(ids < 0, ids[:, :1], ids)
        masked = forbidding & (ids[:, 0] >= 0)
        if rows.traced:
            rows.record(self.name, torch.where(masked, BAN, 0.0))
        ids = ids.clamp(min=0)
        logits = rows.edits.writable(logits, ids)
        values = torch.where(masked[:, None], -torch.inf, logits.gather(1, ids))
        return logits.scatter_(1, ids, values)

    def request_signals(self, rows: Rows, request: SignalRequest) -> None:
        wants = rows.thinking
        if self._acts_in_answer(rows):
            wants = wants | (
                (rows[PHASE] == Phase.ANSWER) & (rows[GREEDY_ANSWER] | rows[ABORT_ANSWER])
            )
        request.active = request.active | (rows[self.on] & wants)

    def propose(self, rows: Rows, signals: Signals, proposal: Proposal) -> None:
        on = rows[self.on] & signals.valid
        thinking = on & rows.thinking
        top_entry = proposal.ids[:, 0]
        proposal.latent = proposal.latent | thinking
        proposal.force(thinking, top_entry)
        answering = rows.constant(False)
        if self._acts_in_answer(rows):
            answering = on & (rows[PHASE] == Phase.ANSWER)
            proposal.force(answering & rows[GREEDY_ANSWER], top_entry)
        if rows.uses(THRESHOLD):
            self._stop_when_cold(rows, signals, proposal, thinking, answering)

    @staticmethod
    def _acts_in_answer(rows: Rows) -> bool:
        return rows.uses(GREEDY_ANSWER) or rows.uses(ABORT_ANSWER)

    def _stop_when_cold(
        self,
        rows: Rows,
        signals: Signals,
        proposal: Proposal,
        thinking: Tensor,
        answering: Tensor,
    ) -> None:
        assert signals.entropy is not None
        counter, fires = cold_stop(signals.entropy, rows[COUNTER], rows[THRESHOLD], rows[PATIENCE])
        # The reference tests for the end of the request before it tests for Cold Stop. A sequence
        # that is already being forced cannot be started again.
        ends = is_eos(rows, proposal.ids[:, 0])
        fires_now = fires & thinking & ~ends & (rows[FORCE_LENGTH] == 0)
        counting = thinking | (answering & rows[ABORT_ANSWER])
        rows.choose(COUNTER, counting, torch.where(fires_now, 0, counter))
        rows.add(COLD_STOPS, fires_now)
        # The end that the model writes is certain, too: it is completed, not begun once more.
        start_forcing(rows, fires_now, rows[END_IDS], rows[END_LENGTH], written_end(rows))
        proposal.force(rows[ABORTED], rows[EOS_IDS][:, 0])
        rows.choose(ABORTED, answering & rows[ABORT_ANSWER] & fires, True)

    def commit(self, rows: Rows, before: Tensor, sampled: Tensor) -> None:
        if rows.uses(THRESHOLD):
            # Thinking that ends takes its count with it; in the answer only `published` counts.
            ended = (before == Phase.THINKING) & (rows[PHASE] == Phase.ANSWER)
            rows.choose(COUNTER, rows[self.on] & ended, 0)


def _settings(config: AnyMethod) -> ConceptTokens:
    """The settings of Soft Thinking that a method is built on."""
    if isinstance(config, LatentGrpo):
        return config.soft_thinking()
    assert isinstance(config, ConceptTokens)
    return config


SOFT_THINKING = SoftThinkingMethod()
STEPS = (SOFT_THINKING,)
