"""Taking tokens back, and requests that lose their slot for a while."""

import pytest
import torch
from built_in import Core, bind

from tokenlens.spec import parse_spec

VOCAB = 24
SPEC = {
    "methods": [
        {
            "method": "soft_thinking",
            "top_k": 10,
            "max_entries": 4,
            "cold_stop": {"entropy_threshold": 20.0, "patience": 7},
        },
        {"method": "gumbel_noise"},
    ],
    "phase": {"think_start": [1], "think_end": [2]},
}


def request():
    return bind(parse_spec(SPEC), tokenizer=None, vocab_size=VOCAB, eos_ids=(0,))


def logits_at(number):
    generator = torch.Generator().manual_seed(number)
    logits = torch.randn(1, VOCAB, generator=generator) * 2
    logits[:, 0] = -50.0
    return logits


def step(core, slot, number, by_slot=False):
    """One step, and all that it left behind; ``by_slot``: committed by another tensor of slots."""
    slots = torch.tensor([slot])
    sampled = core.step(logits_at(number), slots).argmax(dim=1)
    core.commit(sampled, slots.clone() if by_slot else slots, torch.tensor([True]))
    feed = core.next_input
    return (
        int(sampled),
        bool(feed.latent[slot]),
        feed.ids[slot].tolist(),
        feed.weights[slot].tolist(),
        core.table.ints[slot].tolist(),
        core.table.floats[slot].tolist(),
        {column.name: values[slot].tolist() for column, values in core.table.wide.items()},
    )


@pytest.mark.parametrize("by_slot", [False, True])
@pytest.mark.parametrize("dropped", [1, 2, 3])
@pytest.mark.parametrize("at", [4, 6, 8])
def test_tokens_taken_back_are_decided_again_in_the_same_way(dropped, at, by_slot):
    core = Core(max_slots=2, vocab_size=VOCAB, rewind_steps=3)
    core.add(1, request(), [1], 1)
    before = [step(core, 1, number, by_slot) for number in range(at)]
    core.rewind(1, at - dropped)
    again = [step(core, 1, number, by_slot) for number in range(at - dropped, at)]
    assert again == before[at - dropped :]


def test_other_tokens_may_follow():
    core = Core(max_slots=1, vocab_size=VOCAB, rewind_steps=2)
    core.add(0, request(), [1], 1)
    for number in range(5):
        step(core, 0, number)
    core.rewind(0, 3)
    other = [step(core, 0, number) for number in (30, 31)]
    fresh = Core(max_slots=1, vocab_size=VOCAB)
    fresh.add(0, request(), [1], 1)
    for number in range(3):
        step(fresh, 0, number)
    assert other == [step(fresh, 0, number) for number in (30, 31)]


def test_a_suspended_request_comes_back_in_another_slot():
    core = Core(max_slots=2, vocab_size=VOCAB, rewind_steps=2)
    core.add(0, request(), [1], 1)
    expected = Core(max_slots=2, vocab_size=VOCAB, rewind_steps=2)
    expected.add(0, request(), [1], 1)
    for number in range(4):
        assert step(core, 0, number) == step(expected, 0, number)
    suspended = core.suspend(0)
    assert core.idle
    # Somebody else has the slot meanwhile.
    core.add(0, request(), [3, 1], 2)
    step(core, 0, 50)
    core.resume(1, suspended)
    for number in range(4, 10):
        assert step(core, 1, number) == step(expected, 0, number)
    core.rewind(1, 9)
    expected.rewind(0, 9)
    assert step(core, 1, 9) == step(expected, 0, 9)


def test_a_core_that_keeps_no_past_says_so():
    core = Core(max_slots=1, vocab_size=VOCAB)
    core.add(0, request(), [1], 1)
    with pytest.raises(RuntimeError, match="rewind_steps"):
        core.rewind(0, 0)
