"""What SwiReasoning can be asked for (arXiv 2510.05069)."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from tokenlens.methods._shared.gate.fields import Blend, Gate
from tokenlens.methods._shared.gate.switching import PUBLISHED, Switching

_TREND = Gate(of="raw", trend=True, first="latent", dwell_discrete=512, exempt="math")


class SwiReasoning(Switching):
    """Blocks of latent and of discrete thinking, switched by the trend of the entropy."""

    # The code looks the two characters backslash and n up, not a line break.
    published: ClassVar[Mapping[str, Any]] = {
        **PUBLISHED,
        "first": Blend(tokens=("\\n",), keep=0.9),
    }

    method: Literal["swi_reasoning"] = "swi_reasoning"
    gate: Gate = Field(_TREND, description="when a step is latent")
    first: Blend | None = Field(
        Blend(tokens=("\n",), keep=0.9), description="at the first latent step"
    )
    enter: Blend | None = Field(
        Blend(tokens="think_start", keep=1.0, moves=True), description="at the switch to latent"
    )
    leave: Blend | None = Field(
        Blend(tokens="think_end", keep=0.7, moves=True),
        description="at the switch to discrete: fed instead of the token; null = the token",
    )


CONFIG = SwiReasoning
