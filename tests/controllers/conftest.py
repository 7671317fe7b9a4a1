"""What the controllers' tests share."""

import json
from pathlib import Path

import pytest

VECTORS = Path(__file__).parents[1] / "vectors" / "search_methods.json"


@pytest.fixture(scope="session")
def vectors():
    """Outputs of the public programs, by family."""
    return json.loads(VECTORS.read_text())
