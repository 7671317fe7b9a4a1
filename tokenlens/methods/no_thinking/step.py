"""Ends thinking at once: the step of ``answer_now`` after no token."""

from tokenlens.methods.answer_now.step import EndThinkingMethod

STEPS = (EndThinkingMethod("no_thinking"),)
