"""The last hidden state, mapped to the space of the embeddings and rescaled."""

from tokenlens.methods._shared.hidden_feedback.step import HIDDEN_FEEDBACK

STEPS = (HIDDEN_FEEDBACK,)
