"""What Soft Tokens, Hard Truths can be asked for (arXiv 2509.19170)."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from tokenlens.methods._shared.filters import Entries, TopK, TopP
from tokenlens.methods.soft_thinking.config import ConceptTokens
from tokenlens.spec.base import LEAST, MAX_ENTRIES, Needs
from tokenlens.spec.needs import Need


class SoftTokens(ConceptTokens):
    """A mixture at low temperature, with Gaussian noise on its embedding."""

    published: ClassVar[Mapping[str, Any]] = {"mixture": "full"}

    method: Literal["soft_tokens"] = "soft_tokens"
    temperature: float = Field(
        0.5, ge=LEAST, le=100, description="0.0001: the paper's fuzzy tokens"
    )
    top_k: TopK = 0
    top_p: TopP = 1.0
    max_entries: Entries = MAX_ENTRIES
    mixture: Literal["top_k", "full"] = Field(
        "top_k", description="full: the whole vocabulary, where the engine can"
    )
    noise_scale: float = Field(
        0.33, ge=0, le=100, description="gamma, times the RMS of the embedding; 0 = no noise"
    )
    rms: Literal["coordinate", "row"] = Field(
        "coordinate", description="row: of the rows' norms, larger by the root of the width"
    )

    @property
    def uses_seed(self) -> bool:
        """Draws: what it does depends on the request's seed."""
        return self.noise_scale > 0

    def needs(self) -> Needs:
        found: dict[Need, tuple[str, Any, str]] = {}
        if self.mixture == "full":
            way_out = "mixture = top_k, the 64 most probable"
            found[Need.DENSE_MIXTURE] = ("mixture", self.mixture, way_out)
        if self.noise_scale > 0:
            found[Need.EMBEDDING_NOISE] = (
                "noise_scale", self.noise_scale, "0, and gumbel_noise for noise on the weights"
            )  # fmt: skip
        return found


CONFIG = SoftTokens
