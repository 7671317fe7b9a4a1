"""Numbers of controllers: what they ask the engine for stays within its bounds in float32."""

import pytest

from tokenlens.controllers import CONTROLLERS
from tokenlens.evaluation.arms import ArmSampling


def open_ends(node):
    """Numbers with a bound that rounding to float32 can reach: one that is not allowed itself."""
    if isinstance(node, dict):
        if node.get("type") == "number":
            yield from (key for key in node if key.startswith("exclusive"))
        for below in node.values():
            yield from open_ends(below)
    elif isinstance(node, list):
        for below in node:
            yield from open_ends(below)


@pytest.mark.parametrize(
    "model", [ArmSampling, *(model for model, _ in CONTROLLERS.values())], ids=lambda m: m.__name__
)
def test_no_bound_is_one_that_rounding_reaches(model):
    assert list(open_ends(model.model_json_schema())) == []


def test_an_open_end_is_found():
    assert list(open_ends({"anyOf": [{"type": "number", "exclusiveMinimum": 0}]}))
