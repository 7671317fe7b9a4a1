"""The batch: slot state, phases, signals, the step pipeline, the feed plan. Knows no engine."""

from tokenlens.core.columns import Phase
from tokenlens.core.next_input import NextInputs
from tokenlens.core.pipeline import Core
from tokenlens.core.report import StepReport
from tokenlens.core.request import Request, bind
from tokenlens.core.slots import SlotTable

__all__ = ["Core", "NextInputs", "Phase", "Request", "SlotTable", "StepReport", "bind"]
