"""Hidden-state feedback: Coconut (arXiv 2412.06769) and LatentMAS (arXiv 2511.20639).

For a fixed number of steps from the beginning of thinking the next input is the model's last hidden
state, as it is (Coconut) or mapped into the space of the embeddings and rescaled (LatentMAS).
The visible token is the arg-max, or a placeholder of the user's.

LatentMAS: ``published`` rescales without the alignment matrix, the code's default. Asked for beside
it (``quirks.realign``), the matrix is the code's, made in float32, which other sums round to
another one; the default's is made in float64. Not reproduced: its padding positions that are
attended to. Both references look for no end of thinking while they are latent; here an arg-max that
is one ends it, and with a placeholder nothing does.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from tokenlens.core import phases
from tokenlens.core.columns import (
    BASE_WEIGHT,
    INVERSE_TEMPERATURE,
    MAX_ENTRIES,
    Field,
    Value,
)
from tokenlens.core.engine_vectors import HIDDEN, REALIGN, RESCALE, SINGLE
from tokenlens.core.method import Admission, Method
from tokenlens.core.proposal import Proposal, SignalRequest, Signals
from tokenlens.core.rows import Rows
from tokenlens.methods._shared.exempt import one_token
from tokenlens.methods._shared.hidden_feedback.fields import HiddenFeedback
from tokenlens.methods.coconut.config import Coconut
from tokenlens.methods.latent_mas.config import LatentMas
from tokenlens.spec.registry import AnyMethod

STEPS = Field("hidden_feedback.steps", "int")
PLACEHOLDER = Field("hidden_feedback.placeholder", "int", -1)


class HiddenFeedbackMethod(Method):
    """Latent for the first steps of thinking; the vector is the engine's."""

    def __init__(self) -> None:
        super().__init__("hidden_feedback", STEPS, PLACEHOLDER)

    def serves(self, config: AnyMethod) -> bool:
        return isinstance(config, (Coconut, LatentMas))

    def admit(self, config: AnyMethod, admission: Admission) -> Mapping[Field, Value]:
        assert isinstance(config, HiddenFeedback)
        placeholder = -1
        if config.placeholder is not None:
            field = f"{config.method}.placeholder"
            placeholder = one_token(config.placeholder, admission, field)
        aligns = isinstance(config, LatentMas) and config.rules.realign
        return {
            INVERSE_TEMPERATURE: 1.0,
            MAX_ENTRIES: 1,
            BASE_WEIGHT: 1.0,
            HIDDEN: True,
            STEPS: config.steps,
            PLACEHOLDER: placeholder,
            REALIGN: aligns,
            SINGLE: aligns and config.rules.precision == "float32",
            RESCALE: isinstance(config, LatentMas),
        }

    def request_signals(self, rows: Rows, request: SignalRequest) -> None:
        request.active = request.active | self._here(rows)

    def propose(self, rows: Rows, signals: Signals, proposal: Proposal) -> None:
        latent = self._here(rows) & signals.valid
        placeholder = rows[PLACEHOLDER]
        proposal.latent = proposal.latent | latent
        proposal.force(latent, torch.where(placeholder >= 0, placeholder, proposal.ids[:, 0]))

    def _here(self, rows: Rows) -> Tensor:
        early = phases.in_block(rows) < rows[STEPS]
        return rows[self.on] & rows.thinking & early


HIDDEN_FEEDBACK = HiddenFeedbackMethod()
