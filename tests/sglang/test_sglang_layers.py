"""What SGLang's decoder layers leave: the sums they owe, and which of them get no seat."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tokenlens.errors import UnsupportedError
from tokenlens.sglang.layers import check_layers, completed


class Stream:
    """A residual stream, as SGLang's, with what a layer left pending or already added."""

    def __init__(self, pending, residual):
        self.pending, self.residual = pending, residual

    def complete(self, output):
        assert output == "owed"
        return torch.full((2, 4), 6.0)


def layer(update=None, *, whole=True):
    """A decoder layer that declares a stage, or none; its sums are made in it, or not."""
    made = nn.Linear(4, 4)
    made.reduce_results = whole
    found = nn.ModuleList([made])
    if update is not None:
        first = SimpleNamespace(update=SimpleNamespace(is_plain_add=False, applied_at_exit=False))
        found.attn_boundary = SimpleNamespace(declaration=first)
        found.ffn_boundary = SimpleNamespace(declaration=SimpleNamespace(update=update))
    return found


def update(plain, at_exit=False):
    return SimpleNamespace(is_plain_add=plain, applied_at_exit=at_exit)


@pytest.mark.parametrize("named", [False, True])
def test_a_sum_over_ranks_is_made_and_the_addition_stays_owed(named):
    residual = torch.ones(2, 4)
    batch = SimpleNamespace(residual_stream=Stream(SimpleNamespace(), residual))
    args, more = ((), {"forward_batch": batch}) if named else ((None, batch), {})
    output, states, beside = completed("owed", args, more)
    assert output is states
    assert states.eq(6).all()
    assert beside is residual
    # What is written already is whole.
    batch.residual_stream.pending = None
    assert completed("owed", args, more)[2] is None


def test_layers_without_a_stream_leave_what_they_return():
    pair = torch.ones(2, 4), torch.zeros(2, 4)
    assert completed(pair, (SimpleNamespace(),), {}) == (pair, *pair)
    assert completed(pair[0], (), {}) == (pair[0], pair[0], None)


@pytest.mark.parametrize("ranks", [1, 2])
def test_layers_that_say_what_they_owe_may_have_a_seat(ranks):
    check_layers([layer(update(plain=True), whole=False), layer(update(False, True))], ranks)
    check_layers([layer()], ranks)


def test_layers_of_which_it_is_not_known_what_they_leave_end_the_start():
    with pytest.raises(UnsupportedError, match="ModuleList, whose output is changed before it is"):
        check_layers([layer(update(plain=False))], 1)
    check_layers([layer(whole=False)], 1)
    with pytest.raises(UnsupportedError, match="tp_size: got 2 with ModuleList"):
        check_layers([layer(), layer(whole=False)], 2)
