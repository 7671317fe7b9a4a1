"""What Coconut can be asked for (arXiv 2412.06769)."""

from typing import Literal

from tokenlens.methods._shared.hidden_feedback.fields import HiddenFeedback


class Coconut(HiddenFeedback):
    """The last hidden state itself is the next input."""

    method: Literal["coconut"] = "coconut"


CONFIG = Coconut
