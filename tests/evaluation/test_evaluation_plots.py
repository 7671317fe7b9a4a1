"""Accuracy against a router's share, from the table that the routing benchmark writes."""

import csv
import importlib.util
from pathlib import Path

import pytest

from tokenlens.evaluation import plots

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "routing.py"
ROWS = [
    ("small alone", "", 500, 19.2, 0.0),
    ("large alone", "", 500, 53.6, 100.0),
    ("GlimpRouter", "0.3 nats", 500, 41.0, 37.5),
    ("random", "share 0.310", 500, 30.2, 36.9),
]


@pytest.fixture
def table(tmp_path):
    """A file with the benchmark's own columns."""
    spec = importlib.util.spec_from_file_location("routing_benchmark", BENCHMARK)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    known = ("name", "setting", "problems", "accuracy", "large_tokens")
    path = tmp_path / "routing.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, module.FIELDS, restval="0")
        writer.writeheader()
        writer.writerows(dict(zip(known, row)) for row in ROWS)
    return path


def test_the_router_plot_shows_the_table(table):
    with table.open(newline="") as file:
        points = plots.routed(csv.DictReader(file))
    assert [point.label for point in points] == [
        "small alone", "large alone", "GlimpRouter 0.3 nats", "random share 0.310",
    ]  # fmt: skip
    assert [point.is_control for point in points] == [True, True, False, True]
    assert all(p.accuracy.low < p.accuracy.mean < p.accuracy.high for p in points)
    figure = plots.against_share(points)
    axes = figure.axes[0]
    drawn = [tuple(box.lines[0].get_xydata()[0]) for box in axes.containers]
    assert drawn == [pytest.approx((row[4] / 100, row[3] / 100)) for row in ROWS]
    assert axes.get_xlabel() == "share of the large model"
    assert [text.get_text() for text in axes.texts] == ["1", "2", "3", "4"]
    assert axes.containers[2].lines[0].get_color() == plots.SPEC
