"""``tokenlens plot-schedule`` draws what the methods do."""

import json

import pytest
import torch
from typer.testing import CliRunner

from tokenlens.cli.app import app
from tokenlens.cli.plot_schedule import curves, drawn, length_of
from tokenlens.spec import METHOD_CONFIGS, parse_spec

WAVE = {"method": "cyclic_reflex", "amplitude": 4, "period": 80, "words": ["wait"]}
WINDOW = {"method": "static_window", "windows": [[10, 30]]}
OTHERS = [
    {"method": "tip", "duration": 20},
    {"method": "thinking_budget", "budget": 100, "ramp": 0.5, "ramp_strength": 6},
    {"method": "alpha_one", "average_thinking": 100, "alpha": 1.0},
]


def draw(methods, *arguments):
    return CliRunner().invoke(
        app, ["plot-schedule", json.dumps({"methods": methods}), *arguments], terminal_width=100
    )


def test_a_picture_and_a_drawing(tmp_path):
    out = tmp_path / "wave.png"
    result = draw([WAVE, WINDOW, *OTHERS], "--out", str(out))
    assert result.exit_code == 0, result.output
    assert out.read_bytes().startswith(b"\x89PNG")
    for name in drawn():
        assert f"{name}:" in result.output
    lines = [line for line in result.output.splitlines() if "│" in line][:13]
    assert lines[0].lstrip().startswith("4.00")
    assert lines[-1].lstrip().startswith("-4.00")
    # Two periods: two peaks and two troughs.
    assert [sum(mark == "●" for mark in line) > 0 for line in (lines[0], lines[-1])] == [True] * 2


def test_every_method_with_a_schedule_is_drawn_here():
    assert sorted(drawn()) == sorted(one["method"] for one in (WAVE, WINDOW, *OTHERS))
    for name in METHOD_CONFIGS.keys() - set(drawn()):
        # It has a field in tokens or a wave, and no curve: say in `drawn` what it draws.
        assert not {"period", "wave", "windows", "ramp"} & METHOD_CONFIGS[name].model_fields.keys()


def test_the_curves_are_the_methods_own():
    spec = parse_spec({"methods": [WAVE, WINDOW, *OTHERS]})
    values = [curve.values.tolist() for curve in curves(spec, torch.tensor([0, 20, 60, 100]))]
    assert values == [
        [0, 4, -4, 4],
        [0, -3, 0, 0],
        [-3, 0, 0, 0],
        [0, 0, pytest.approx(1.2), 6],
        [1, 0.8, 0.4, 0],
    ]
    assert length_of(spec) == 160


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ([{"method": "soft_thinking"}], "has a schedule:"),
        ([{**WAVE, "period": 0}], "period"),
    ],
)
def test_nothing_to_draw(methods, message):
    result = draw(methods)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
