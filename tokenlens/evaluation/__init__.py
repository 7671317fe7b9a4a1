"""Tasks, scoring, controls, tables: whether a method helps, beside what it has to beat.

``evaluate(open_engine("hf", model), load_task("countdown"), arms_of({"soft": spec}), folder)``
"""

from tokenlens.errors import FolderError
from tokenlens.evaluation.arms import DEFAULT_SAMPLING, GREEDY, Arm, ArmSampling, arms_of
from tokenlens.evaluation.cost import Curve, EqualCost, at_equal_cost, curve
from tokenlens.evaluation.engine import Engine
from tokenlens.evaluation.engines import open_engine
from tokenlens.evaluation.question import Question
from tokenlens.evaluation.records import Generated, Record
from tokenlens.evaluation.results import Against, Row, comparisons, rows
from tokenlens.evaluation.run import Results, evaluate
from tokenlens.evaluation.tasks import Task, load_task

Sampling = ArmSampling
"""Its name before 0.2, which goes with 0.3."""

__all__ = [
    "DEFAULT_SAMPLING",
    "GREEDY",
    "Against",
    "Arm",
    "ArmSampling",
    "Curve",
    "Engine",
    "EqualCost",
    "FolderError",
    "Generated",
    "Question",
    "Record",
    "Results",
    "Row",
    "Sampling",
    "Task",
    "arms_of",
    "at_equal_cost",
    "comparisons",
    "curve",
    "evaluate",
    "load_task",
    "open_engine",
    "rows",
]
