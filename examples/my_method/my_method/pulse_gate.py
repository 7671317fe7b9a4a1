"""Think in mixtures for some steps, in tokens for some others, in turns."""

from typing import ClassVar, Literal

from pydantic import Field

from tokenlens.methods import Column, Method, Need, columns, method
from tokenlens.spec import MethodBase


class PulseGate(MethodBase):
    """Latent for ``latent`` thinking steps, then discrete for ``discrete`` ones, and again."""

    family: ClassVar[tuple[str, ...]] = ("latent", "gate")

    method: Literal["pulse_gate"] = "pulse_gate"
    latent: int = Field(3, ge=1, le=10_000, description="latent steps of a period")
    discrete: int = Field(2, ge=0, le=10_000, description="discrete steps of a period")
    temperature: float = Field(0.6, ge=1e-6, le=100, description="of the concept weights")
    max_entries: int = Field(8, ge=1, le=64, description="entries of a concept token")


LATENT = Column("pulse_gate.latent", "int", 1, fixed=True)
PERIOD = Column("pulse_gate.period", "int", 1, fixed=True)


@method(PulseGate, after="soft_thinking")
class PulseGateMethod(Method):
    """Counts the thinking tokens; the mixture is what the core's one pass over the logits gives."""

    def __init__(self):
        super().__init__("pulse_gate", LATENT, PERIOD)

    def admit(self, config, admission):
        return {
            LATENT: config.latent,
            PERIOD: config.latent + config.discrete,
            columns.INVERSE_TEMPERATURE: 1 / config.temperature,
            columns.MAX_ENTRIES: min(config.max_entries, admission.vocab_size),
        }

    def needs(self, config):
        return Need.LATENT

    def request_signals(self, rows, request):
        request.active = request.active | (rows[self.on] & rows.thinking)

    def propose(self, rows, signals, proposal):
        # [num_rows] bool
        beats = rows[columns.THINKING_TOKENS] % rows[PERIOD] < rows[LATENT]
        latent = rows[self.on] & rows.thinking & signals.valid & beats
        proposal.latent = proposal.latent | latent
        proposal.force(latent, proposal.ids[:, 0])
