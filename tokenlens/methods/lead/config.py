"""What LEAD can be asked for (arXiv 2603.13366)."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from tokenlens.methods._shared.gate.fields import Blend, Gate, SwitchControl
from tokenlens.methods._shared.gate.switching import PUBLISHED, Switching


class Lead(Switching):
    """Latent where the entropy is high, with an anchor at each switch; multimodal by origin.

    The default is the paper's rule: the trend alone, and a fixed blend. It has no anchor at the
    switch to latent, because a text model has no vision tokens; ``VISION`` is the paper's.
    """

    VISION: ClassVar[Blend] = Blend(
        tokens=("<|vision_start|>", "<|image_pad|>", "<|vision_end|>"), keep=0.4
    )
    """The paper's anchor: the mean of the vision markers."""

    published: ClassVar[Mapping[str, Any]] = {
        **PUBLISHED,
        "gate": Gate(
            of="raw", trend=True, enter=1.0, leave=0.2, enter_at_bound=False, first="latent",
            dwell_discrete=256, exempt="math",
        ),
        "first": Blend(tokens=("\n",), keep=0.9),
        "enter": Blend(tokens=("<|image_pad|>",), keep=0.6, moves=True),
        "leave": Blend(tokens="think_end", keep=0.7, moves=True),
        "switch_control": SwitchControl(after=5),
    }  # fmt: skip

    method: Literal["lead"] = "lead"
    gate: Gate = Field(
        Gate(of="raw", trend=True, first="latent", dwell_discrete=128, max_switches=5),
        description="when a step is latent",
    )


CONFIG = Lead
