"""The last hidden state as it is."""

from tokenlens.methods._shared.hidden_feedback.step import HIDDEN_FEEDBACK

STEPS = (HIDDEN_FEEDBACK,)
