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
    ("GlimpRouter", "0.9 nats", 500, 35.0, 10.2),
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
        figure = plots.against_share(csv.DictReader(file))
    axes = figure.axes[0]
    drawn = {
        box.get_label(): [pytest.approx(tuple(xy)) for xy in box.lines[0].get_xydata()]
        for box in axes.containers
    }
    assert drawn == {
        "small alone": [(0.0, 0.192)],
        "large alone": [(1.0, 0.536)],
        "GlimpRouter": [(0.102, 0.35), (0.375, 0.41)],
        "random": [(0.369, 0.302)],
    }
    for box in axes.containers:
        assert (box.lines[0].get_color() == plots.CONTROL) == (box.get_label() != "GlimpRouter")
        (bar,) = box.lines[2]
        for (x, low), (_, high) in bar.get_segments():
            assert low < dict(box.lines[0].get_xydata())[x] < high
    assert axes.get_xlabel() == "share of the large model"
