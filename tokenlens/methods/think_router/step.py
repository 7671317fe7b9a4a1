"""Soft Thinking, whose latent rows the gate may turn discrete."""

from tokenlens.methods._shared.gate.step import GATE
from tokenlens.methods.soft_thinking.step import SOFT_THINKING

STEPS = (SOFT_THINKING, GATE)
