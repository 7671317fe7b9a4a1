"""Plots show the trace's figures, and the wave is the decoder's."""

import pytest
import torch
from trace_samples import SPEC, recording

from tokenlens.methods.waves import WAVES, schedule
from tokenlens.spec import ColdStop, CyclicReflex, DecodingSpec, SoftThinking
from tokenlens.trace import plots
from tokenlens.trace.viewer import page
from tokenlens.trace.waves import edits_of, wave


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


@pytest.mark.parametrize("shape", WAVES)
def test_the_shown_wave_is_the_decoded_one(shape):
    config = CyclicReflex(wave=shape, amplitude=2.5, period=37.0, shift=-0.3)
    position = torch.arange(200)
    rows = [list(WAVES).index(shape)], [2.5], [37.0], [-0.3]
    expected = schedule(*(torch.tensor(x).expand(200) for x in rows), position)
    found = [wave(config, i) for i in range(200)]
    if shape == "square":
        # On the edge itself the two round differently.
        found[found.index(-2.5)] = expected[found.index(-2.5)].item()
    assert found == pytest.approx(expected.tolist(), abs=1e-5)


def test_the_wave_stands_where_it_acts():
    steps = recording(900).trace.steps
    config = CyclicReflex(windows=((100, 200),))
    amounts = edits_of(SPEC.model_copy(update={"methods": (config,)}), steps[:1])
    assert list(amounts) == ["cyclic_reflex"]
    bare = tuple(step.model_copy(update={"edits": None}) for step in steps)
    found = edits_of(SPEC.model_copy(update={"methods": (config,)}), bare)["cyclic_reflex"]
    assert [i for i, amount in enumerate(found) if amount is not None] == list(range(100, 200))


def test_the_page_needs_nothing_else():
    text = page([recording(20)])
    for word in ("http://", "https://", "src=", "@import", "url("):
        assert word not in text
