"""Odd rows of logits have a clear outcome, and a single entry is one token exactly."""

import pytest
import torch
from built_in import Core, bind
from core_solo import END, EOS, MARKERS, START, VOCAB, Solo, peaked

from tokenlens import DecodingSpec
from tokenlens.core import Phase
from tokenlens.core.columns import INVALID_STEPS, PHASE
from tokenlens.methods.soft_thinking.step import COUNTER
from tokenlens.spec import (
    ColdStop,
    DirichletNoise,
    GumbelNoise,
    NoThinking,
    SoftThinking,
    Top1,
)

SOFT = SoftThinking(top_k=8, max_entries=8)
NOISES = {"none": (), "gumbel": (GumbelNoise(),), "dirichlet": (DirichletNoise(),)}


def odd(kind):
    row = peaked(9)
    if kind == "all -inf":
        return torch.full_like(row, -torch.inf)
    row[5] = {"NaN": torch.nan, "+inf": torch.inf}[kind]
    return row


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("kind", ["NaN", "+inf", "all -inf"])
def test_an_odd_row_is_left_alone_and_counted(kind, noise):
    solo, row = Solo(SOFT, *NOISES[noise]), odd(kind)
    edited = solo.step(row)
    assert torch.equal(edited.view(torch.int32), row.view(torch.int32))
    record = solo.commit(7)
    assert not record.valid
    assert not record.latent
    assert not record.forced
    assert float(record.entropy) == 0
    assert solo.entries == {7: 1.0}
    assert solo.column(INVALID_STEPS) == 1


@pytest.mark.parametrize("kind", ["NaN", "+inf", "all -inf"])
def test_a_request_goes_on_after_an_odd_row(kind):
    solo = Solo(SOFT)
    solo.run(odd(kind), 7)
    record = solo.run(peaked(9, 2.0))
    assert record.valid
    assert record.latent
    assert solo.column(INVALID_STEPS) == 1
    assert solo.column(PHASE) == Phase.THINKING


def test_an_odd_row_does_not_touch_the_cold_stop_counter():
    cold = SoftThinking(top_k=8, max_entries=8, cold_stop=ColdStop(entropy_threshold=1.0))
    solo = Solo(cold)
    for row in (peaked(9, 30.0), odd("NaN"), peaked(9, 30.0)):
        solo.run(row, 9)
    assert solo.column(COUNTER) == 2


def test_an_odd_row_does_not_stop_a_forced_sequence():
    solo = Solo(NoThinking())
    record = solo.run(odd("all -inf"))
    assert int(record.token) == END
    assert record.forced


def test_some_minus_infinities_are_an_ordinary_row():
    row = peaked(9)
    row[:5] = -torch.inf
    solo = Solo(SOFT)
    assert solo.run(row).valid
    assert not set(solo.entries) & set(range(5))


def test_an_odd_row_changes_no_other_row():
    core = Core(max_slots=2, vocab_size=VOCAB)
    spec = DecodingSpec(methods=(SOFT, GumbelNoise()), phase=MARKERS)
    for slot in range(2):
        core.add(slot, bind(spec, tokenizer=None, vocab_size=VOCAB), [START])
    slots = torch.tensor([0, 1])
    core.commit(core.step(torch.stack([odd("NaN"), peaked(9)]), slots)[1].argmax().expand(2), slots)
    solo = Solo(SOFT, GumbelNoise(), eos=())
    solo.run(peaked(9))
    assert torch.equal(core.next_input.weights[1], solo.core.next_input.weights[0])
    assert torch.equal(core.next_input.ids[1], solo.core.next_input.ids[0])


PADDED = {"small": (13, 16), "one": (40, 41), "Qwen3": (151_669, 151_936)}


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("size", PADDED)
def test_padded_ids_never_appear(size, noise):
    vocab, width = PADDED[size]
    generator = torch.Generator().manual_seed(width)
    solo = Solo(SOFT, *NOISES[noise], vocab=vocab)
    for _ in range(3):
        row = torch.randn(width, generator=generator)
        row[:10] = -10.0
        row[vocab:] = 100.0
        edited = solo.step(row)
        record = solo.commit()
        assert torch.equal(edited[vocab:], row[vocab:])
        assert record.latent
        assert max(solo.entries) < vocab
        assert int(record.ids.max()) < vocab


def test_padding_may_hold_anything():
    for value in (torch.nan, torch.inf, -torch.inf):
        solo = Solo(SOFT)
        record = solo.run(torch.cat([peaked(9), torch.full((3,), value)]), 9)
        assert record.valid


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize(
    "settings", [{"temperature": 0.0}, {"top_k": 1}, {"max_entries": 1}], ids=str
)
def test_one_entry_has_a_weight_of_exactly_one(settings, noise):
    method = SoftThinking(**{"top_k": 8, "max_entries": 8, **settings})
    solo = Solo(method, *NOISES[noise])
    solo.run(torch.linspace(0, 1, VOCAB))
    assert solo.latent
    assert solo.core.next_input.weights[0].tolist() == [1.0] + [0.0] * (VOCAB - 1)
    if settings != {"max_entries": 1} or noise != "dirichlet":
        # A Dirichlet draw comes before the cut, so there chance decides which entry stays.
        assert solo.entries == {VOCAB - 1: 1.0}


def test_ties_at_temperature_zero_go_to_the_lower_id():
    solo = Solo(SoftThinking(temperature=0.0, top_k=8, max_entries=8))
    row = torch.zeros(VOCAB)
    row[[10, 7]] = 1.0
    solo.run(row)
    assert solo.entries == {7: 1.0}


def test_more_than_one_entry_has_weights_below_one():
    solo = Solo(SOFT)
    solo.run(torch.linspace(0, 1, VOCAB))
    assert len(solo.entries) > 1
    assert sum(solo.entries.values()) == pytest.approx(1.0)


@pytest.mark.parametrize("noise", NOISES)
def test_top1_is_never_latent_but_writes_the_same_first_token(noise):
    generator = torch.Generator().manual_seed(4)
    seen = 0
    for seed in range(20):
        row = torch.randn(VOCAB, generator=generator)
        row[[END, EOS]] = -10.0
        mixed = Solo(SOFT, *NOISES[noise], seed=seed)
        alone = Solo(SOFT, *NOISES[noise], Top1(), seed=seed)
        first, second = mixed.run(row), alone.run(row)
        assert first.token == second.token
        assert first.latent
        assert not second.latent
        assert second.forced
        assert alone.entries == {int(second.token): 1.0}
        seen += len(mixed.entries) > 1
    assert seen > 10, "the mixtures had one entry each"


def test_the_given_logits_are_not_changed():
    for method in (
        SOFT,
        NoThinking(),
        SoftThinking(top_k=8, max_entries=8, eos_while_latent="forbid"),
    ):
        solo, row = Solo(method), peaked(EOS)
        kept = row.clone()
        solo.step(row)
        assert torch.equal(row, kept)


def test_half_precision_logits_are_taken_as_they_come():
    for dtype in (torch.bfloat16, torch.float16):
        solo = Solo(SOFT)
        edited = solo.step(peaked(9, 2.0).to(dtype))
        assert edited.dtype == dtype
        assert solo.commit().latent
