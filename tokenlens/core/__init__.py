"""The batch: slot state, phases, signals, the step pipeline, the feed plan. Knows no engine."""

from tokenlens.core.feed import FeedPlan
from tokenlens.core.pipeline import Core, Step
from tokenlens.core.request import Request, bind
from tokenlens.core.slots import SlotTable
from tokenlens.methods.base import Phase

__all__ = ["Core", "FeedPlan", "Phase", "Request", "SlotTable", "Step", "bind"]
