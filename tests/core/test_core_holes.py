"""Ids without a token, below the largest one: never part of a mixture, as padding is not."""

import pytest
import torch
from built_in import Core, bind
from tokenlens_kernels import signals_topk

from tokenlens.spec import parse_spec

HOLES, SIZE, START, END = (3, 7), 12, 1, 2


def stepped(method, holes, logits):
    spec = parse_spec({"methods": [method], "phase": {"think_start": [START], "think_end": [END]}})
    core = Core(max_slots=2, vocab_size=SIZE, width=4, holes=holes, signals=signals_topk)
    core.add(0, bind(spec, tokenizer=None, vocab_size=SIZE), [START])
    slots = torch.tensor([0, core.table.null_slot])
    left = core.step(logits.expand(2, -1).contiguous(), slots)
    sampled = left.argmax(dim=1)
    core.commit(sampled, slots)
    used = core.next_input.weights[0] > 0
    return set(core.next_input.ids[0][used].tolist()), left


@pytest.mark.parametrize(
    "method",
    [{"method": "soft_thinking", "top_k": 4, "max_entries": 4, "top_p": 1.0, "min_p": 0.0},
     {"method": "cot2", "draws": 4}],
    ids=["soft_thinking", "cot2"],
)  # fmt: skip
def test_holes_are_in_no_mixture(method):
    # [14]: two columns of padding; the holes stand above all others
    logits = torch.zeros(1, 14)
    logits[0, list(HOLES)] = 9.0
    logits[0, 5:7] = 2.0
    before, _ = stepped(method, (), logits)
    assert before & set(HOLES)
    after, left = stepped(method, HOLES, logits)
    assert after
    assert not after & {*HOLES, 12, 13}
    # A row that asked for nothing samples from what there was.
    assert torch.equal(left[1], logits[0])
