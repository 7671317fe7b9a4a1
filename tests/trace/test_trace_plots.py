"""Plots and the page show the trace's figures."""

import pytest
from trace_samples import recording

from tokenlens.spec import ColdStop, DecodingSpec, SoftThinking
from tokenlens.trace import plots
from tokenlens.trace.viewer import columns, page


def test_entropy_over_position():
    one = recording(60)
    axes = plots.entropy(one).axes[0]
    assert axes.lines[0].get_xydata().tolist() == [
        [s.position, pytest.approx(s.entropy)] for s in one.trace.steps
    ]
    labels = [line.get_label() for line in axes.lines]
    assert "soft_thinking.cold_stop.entropy_threshold = 0.2" in labels


def test_latent_share_is_a_running_mean():
    one = recording(60)
    shares = plots.latent_share(one, window=10).axes[0].lines[0].get_ydata()
    flags = [s.latent for s in one.trace.steps]
    expected = [sum(flags[max(0, i - 9) : i + 1]) / min(i + 1, 10) for i in range(60)]
    assert list(shares) == pytest.approx(expected)


def test_weights_are_counted_once():
    one = recording(60)
    axes = plots.weights([one]).axes[0]
    drawn = sum(patch.get_height() for patch in axes.patches)
    assert drawn == sum(len(s.entries) for s in one.trace.steps if s.latent)


def test_equal_figures_are_equal_files():
    assert plots.svg(plots.entropy(recording(20))) == plots.svg(plots.entropy(recording(20)))


def test_thresholds_are_found_in_any_method():
    spec = DecodingSpec(methods=(SoftThinking(cold_stop=ColdStop(entropy_threshold=0.3)),))
    assert list(plots.thresholds(spec)) == [("soft_thinking.cold_stop.entropy_threshold", 0.3)]
    assert list(plots.thresholds(DecodingSpec(methods=(SoftThinking(),)))) == []


def test_the_page_s_edits_are_those_of_the_steps():
    one = recording(4)
    steps = list(one.trace.steps)
    steps[1] = steps[1].model_copy(update={"edits": {"nowait": -1e10}})
    trace = one.trace.model_copy(update={"steps": tuple(steps)})
    found = columns(one.model_copy(update={"trace": trace}))["edits"]
    assert list(found) == ["cyclic_reflex", "nowait"]
    assert found["cyclic_reflex"][1::2] == [None, None]
    assert found["nowait"] == [None, -1e10, None, None]


def test_the_page_needs_nothing_else():
    text = page([recording(20)])
    for word in ("http://", "https://", "src=", "@import", "url("):
        assert word not in text
