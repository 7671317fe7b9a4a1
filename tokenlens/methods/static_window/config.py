"""What CyclicReflex's repository calls TIP."""

from typing import Literal

from pydantic import Field

from tokenlens.methods.cyclic_reflex.config import Schedule, Wave


class StaticWindow(Schedule):
    """A constant bias inside absolute windows: what CyclicReflex's repository calls TIP."""

    method: Literal["static_window"] = "static_window"
    wave: Wave = Field("constant", description="shape of the bias over the position")
    amplitude: float = Field(-3.0, ge=-100, le=100, description="of the bias, in logits")


CONFIG = StaticWindow
