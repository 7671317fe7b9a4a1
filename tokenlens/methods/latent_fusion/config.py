"""What the fusion of Latent-Thoughts-Tuning can be asked for (arXiv 2602.10229)."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from tokenlens.methods._shared.filters import Entries, TopK, TopP
from tokenlens.methods._shared.gate.fields import Gate
from tokenlens.methods._shared.hidden_feedback.fields import WAY_OUT
from tokenlens.methods.soft_thinking.config import ConceptTokens
from tokenlens.spec.base import Excludes, Needs
from tokenlens.spec.needs import Need


class LatentFusion(ConceptTokens):
    """Where the model is not sure, its last hidden state and its whole mixture are fed, summed.

    No code of the authors' is known: how much, where and with which filter are the paper's words.
    """

    published: ClassVar[Mapping[str, Any]] = {}
    family: ClassVar[tuple[str, ...]] = ("latent", "gate")
    excludes: ClassVar[tuple[Excludes, ...]] = (
        Excludes("noise", "the whole vocabulary's mixture has no entries for it to change"),
    )

    method: Literal["latent_fusion"] = "latent_fusion"
    alpha: float = Field(
        0.5, ge=0, le=1, description="of the hidden state; the rest is the mixture's"
    )
    rescale: bool = Field(
        False, description="the hidden state at the norm of an embedding, as LatentMAS has it"
    )
    temperature: float = Field(1.0, ge=1e-6, le=100, description="of the mixture")
    top_k: TopK = 0
    top_p: TopP = 1.0
    max_entries: Entries = 1
    gate: Gate = Field(
        Gate(signal="max_probability", of="raw", latent_when="low", enter=0.6),
        description="latent where the model is not sure",
    )

    def needs(self) -> Needs:
        return {
            Need.HIDDEN_STATE: ("method", self.method, WAY_OUT),
            Need.DENSE_MIXTURE: ("method", self.method, WAY_OUT),
        }


CONFIG = LatentFusion
