"""CoT2 (arXiv 2505.23648): tokens drawn with replacement, averaged."""

from collections.abc import Mapping

import torch
from tokenlens_kernels import philox
from torch import Tensor

from tokenlens.core.columns import (
    INVERSE_TEMPERATURE,
    LOG_PROBABILITY,
    MAX_ENTRIES,
    POSITION,
    SEED,
    Field,
    Value,
)
from tokenlens.core.method import Admission, Method
from tokenlens.core.proposal import Proposal, SignalRequest, Signals
from tokenlens.core.rows import Rows
from tokenlens.methods._shared.rollout_noise import take
from tokenlens.methods.cot2.config import MAX_DRAWS, Cot2
from tokenlens.spec.needs import Need
from tokenlens.spec.registry import AnyMethod

DRAWS = Field("cot2.draws", "int", 1)

DRAWN = Field("cot2.drawn", "int", 0, size=MAX_DRAWS)


class Cot2Method(Method):
    """Tokens drawn from the whole vocabulary; the first one is visible."""

    def __init__(self) -> None:
        super().__init__("cot2", DRAWS, DRAWN)

    def admit(self, config: AnyMethod, admission: Admission) -> Mapping[Field, Value]:
        assert isinstance(config, Cot2)
        return {
            DRAWS: config.draws,
            INVERSE_TEMPERATURE: 1 / config.draws if config.scale_logits else 1.0,
            MAX_ENTRIES: min(config.draws, admission.vocab_size),
        }

    def needs(self, config: AnyMethod) -> Need:
        return Need.SCORES

    def edit(self, logits: Tensor, rows: Rows) -> Tensor:
        real = torch.arange(logits.shape[1], device=logits.device) < rows.vocab_size
        if rows.holes is not None:
            real = real.index_fill(0, rows.holes, False)
        z = torch.where(real, logits.float() * rows[INVERSE_TEMPERATURE][:, None], -torch.inf)
        log_p = torch.log_softmax(
            z.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf), dim=1
        )
        cumulated = log_p.exp().cumsum(dim=1)
        index = torch.arange(MAX_DRAWS, device=logits.device)
        place = philox.offset(rows[POSITION][:, None], index, philox.SAMPLE)
        uniform = philox.uniform(rows[SEED][:, None], place)
        # Never past the last token that has any mass: the product may round up to all of it.
        whole = cumulated[:, -1:]
        wanted = (uniform * whole).minimum(torch.nextafter(whole, torch.zeros_like(whole)))
        drawn = torch.searchsorted(cumulated, wanted, right=True).clamp(max=logits.shape[1] - 1)
        rows[DRAWN] = torch.where(rows[self.on][:, None], drawn, rows[DRAWN])
        kept = index < rows[DRAWS][:, None]
        log_probability = torch.where(kept, log_p.gather(1, drawn), 0.0).sum(dim=1)
        # Elsewhere nothing is drawn that counts.
        log_probability = torch.where(rows.thinking, log_probability, 0.0)
        rows.choose(LOG_PROBABILITY, rows[self.on], log_probability)
        return logits

    def request_signals(self, rows: Rows, request: SignalRequest) -> None:
        request.active = request.active | (rows[self.on] & rows.thinking)

    def reweigh(self, rows: Rows, signals: Signals, proposal: Proposal) -> None:
        width = proposal.weights.shape[1]
        index = torch.arange(width, device=proposal.weights.device)
        drawn = rows[DRAWN][:, index.clamp(max=MAX_DRAWS - 1)]
        kept = index < rows[DRAWS][:, None]
        weights = kept / rows[DRAWS][:, None]
        ids = torch.where(kept, drawn, drawn[:, :1])
        take(self, rows, signals, proposal, weights, ids, torch.zeros_like(weights))

    def propose(self, rows: Rows, signals: Signals, proposal: Proposal) -> None:
        latent = rows[self.on] & signals.valid & rows.thinking
        proposal.latent = proposal.latent | latent
        proposal.force(latent, proposal.ids[:, 0])


STEPS = (Cot2Method(),)
