"""Settings of the gate; what it feeds at a switch is a blend."""

from tokenlens.methods._shared.gate.step import GATE

STEPS = (GATE,)
