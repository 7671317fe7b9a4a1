"""Logits that are edited where they lie: the same numbers, and nothing left where an edit fails."""

import pytest
import torch
from core_solo import START
from test_core_compiled import BATCHES, VOCAB, core_of, request_of

from tokenlens.core.logit_edits import LogitEdits
from tokenlens.methods import METHODS

ROWS = 9


def batch(name):
    requests = [request_of(methods, seed) for seed, methods in enumerate(BATCHES[name])]
    return core_of(requests, slots=ROWS), len(requests)


def hostile(generator):
    """Rows of which some hold what no step can use, in a view with a stride of its own."""
    logits = torch.randn(ROWS, VOCAB + 5, generator=generator)[:, : VOCAB + 3] * 4
    logits[1, 3], logits[2, 7] = torch.nan, torch.inf
    logits[4, 5:] = -torch.inf
    logits[5] = 3.0
    return logits


@pytest.mark.parametrize("name", BATCHES)
def test_in_place_gives_the_same_bits_as_a_copy(name):
    (copied, live), (placed, _) = batch(name), batch(name)
    generator, slots = torch.Generator().manual_seed(3), torch.arange(ROWS)
    for _ in range(8):
        logits = hostile(generator)
        stock, given = logits.clone(), logits.clone()
        expected = copied.step(logits, slots)
        assert logits.view(torch.int32).equal(stock.view(torch.int32)), "a copy was promised"
        found = placed.step(given, slots, in_place=True)
        assert found.view(torch.int32).equal(expected.view(torch.int32))
        # Rows without a request keep their bits.
        assert found[live:].view(torch.int32).equal(stock[live:].view(torch.int32))
        sampled = expected[:, :VOCAB].nan_to_num(-1e9, 1e9, -1e9).argmax(dim=1)
        copied.commit(sampled, slots)
        placed.commit(sampled, slots)
    assert copied.table.ints[:-1].equal(placed.table.ints[:-1])


def test_a_step_that_raises_leaves_the_logits_as_they_came(monkeypatch):
    core, _ = batch("edits")
    soft = next(method for method in METHODS if method.name == "soft_thinking")

    def raising(self, rows, signals, proposal):
        raise RuntimeError("a method fails")

    monkeypatch.setattr(type(soft), "propose", raising)
    logits = hostile(torch.Generator().manual_seed(4))
    stock, slots = logits.clone(), torch.arange(ROWS)
    with pytest.raises(RuntimeError, match="a method fails"):
        core.step(logits, slots, in_place=True)
    assert logits.view(torch.int32).equal(stock.view(torch.int32))
    # Without the way back the edits would stay.
    monkeypatch.setattr(LogitEdits, "undo", lambda *arguments: None)
    with pytest.raises(RuntimeError, match="a method fails"):
        core.step(logits, slots, in_place=True)
    assert not logits.view(torch.int32).equal(stock.view(torch.int32))


def test_rows_that_wait_for_their_commit_do_not_hold_the_logits():
    core, _ = batch("edits")
    core.add(ROWS - 1, request_of([{"method": "no_thinking"}]), [START])
    core.step(torch.zeros(ROWS, VOCAB), torch.arange(ROWS), in_place=True)
    assert not hasattr(core._pending.decision().rows, "edits")
