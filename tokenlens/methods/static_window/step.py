"""The step of ``cyclic_reflex``, with a constant wave and columns of its own."""

from tokenlens.methods.cyclic_reflex.step import ScheduleMethod

STEPS = (ScheduleMethod("static_window"),)
