"""The order of the edits, and what several of them do together."""

import re
from pathlib import Path

import pytest
import torch
from logit_support import END, VOCAB, Bench

from tokenlens.core.method import Method
from tokenlens.methods.registry import METHODS
from tokenlens.spec import (
    METHOD_CONFIGS,
    S1,
    AlphaOne,
    CyclicReflex,
    Edt,
    ForkingTemperature,
    Hapo,
    MinP,
    NoWait,
    SoftThinking,
    StaticWindow,
    ThinkingBudget,
    Tip,
    TopH,
    TopNSigma,
)

DOCS = Path(__file__).parents[2] / "docs" / "architecture.md"
STATISTICS = {"median": -1.0, "std": 1.0, "scale_pos": 1.0, "scale_neg": -1.0}
WAIT, OTHER = 5, 15
EVERY = (
    ThinkingBudget(budget=9, ramp=0.5, stop="step", grace=4),
    CyclicReflex(words=("wait",), period=8),
    StaticWindow(words=("but",), windows=((0, 4),)),
    Tip(duration=5),
    NoWait(words=("any",)),
    S1(ignore_end=2, temperature=0.7),
    AlphaOne(average_thinking=6, alpha=1.0, temperature=0.7),
    TopH(alpha=0.9),
    TopNSigma(n=4.0),
    MinP(min_p=0.01),
)
TEMPERATURES = (Edt(), Hapo.model_validate(STATISTICS), ForkingTemperature(threshold=1.0))


def test_the_documented_order_is_the_registrys():
    (line,) = re.findall(r"^`(.* → .*)`$", DOCS.read_text(encoding="utf-8"), re.MULTILINE)
    latent = {name for name, config in METHOD_CONFIGS.items() if "latent" in config.family}
    edits = [m.name for m in METHODS if type(m).edit is not Method.edit and m.name not in latent]
    assert line.split(" → ") == edits
    # What is composed below are all of them, but for the one that would end the request, and those
    # that read a model's layers.
    others = {"tripwire", "budget_guidance", "diffadapt"}
    assert {config.method for config in (*EVERY, *TEMPERATURES)} == set(edits) - others
    names = [method.name for method in METHODS]
    assert names.index("min_p") < names.index("soft_thinking"), "before the concept token"


@pytest.mark.parametrize("temperature", TEMPERATURES, ids=lambda config: config.method)
def test_the_order_in_the_spec_does_not_matter(temperature):
    logits = torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(0)) * 2
    methods = (*EVERY, temperature, SoftThinking(top_k=8))
    outs = []
    for given in (methods, methods[::-1]):
        bench, tokens = Bench(*given), []
        for step in range(16):
            tokens.append(
                (int(bench.run(logits=logits.roll(step, 1))[0]), bench.core.next_input.weights)
            )
        outs.append([(token, weights.clone()) for token, weights in tokens])
    for (a, left), (b, right) in zip(*outs, strict=True):
        assert a == b
        assert torch.equal(left, right)


def test_a_bias_is_applied_before_the_temperature_and_the_cut():
    logits = torch.zeros(1, VOCAB)
    logits[0, [WAIT, OTHER]] = torch.tensor([0.0, 3.0])
    wave = CyclicReflex(words=("Wait",), quirks={"forms": "bare"}, wave="constant", amplitude=3.0)
    edited = Bench(MinP(min_p=0.5), Edt(), wave).edited(logits)[0]
    assert edited.isfinite().nonzero().flatten().tolist() == [WAIT, OTHER]
    assert edited[WAIT] == edited[OTHER]


def test_s1_sees_the_biased_end():
    logits = torch.zeros(1, VOCAB)
    logits[0, [END, OTHER]] = torch.tensor([2.0, 3.0])
    alone = Bench(S1())
    assert int(alone.run(logits=logits)[0]) == OTHER
    ramped = Bench(S1(), ThinkingBudget(budget=10, ramp=1.0, ramp_strength=10.0)).at(5)
    assert int(ramped.run(logits=logits)[0]) == WAIT


def test_of_two_sequences_the_first_is_finished():
    logits = torch.zeros(1, VOCAB)
    logits[0, END] = 5.0
    # The budget is spent at the step at which S1 would write "Wait".
    both = Bench(S1(), ThinkingBudget(budget=0))
    assert int(both.run(logits=logits)[0]) == END


def test_rows_that_ask_for_nothing_keep_their_bits_beside_all_of_them():
    logits = torch.randn(4, VOCAB + 3, generator=torch.Generator().manual_seed(1))
    logits[1, :4] = torch.tensor([-0.0, torch.inf, -torch.inf, torch.nan])
    bench = Bench(*EVERY, Edt(), rows=4)
    bench.core.remove(1)
    bench.core.remove(3)
    slots = torch.tensor([0, bench.core.table.null_slot, 2, 3])
    for _ in range(12):
        edited = bench.core.step(logits, slots)
        for row in (1, 3):
            assert torch.equal(edited[row].view(torch.int32), logits[row].view(torch.int32))
        assert not torch.equal(edited[0], logits[0])
        bench.core.commit(edited.nan_to_num().argmax(1), slots)


def test_a_request_does_the_same_alone_and_in_a_batch():
    generator = torch.Generator().manual_seed(2)
    rows = [torch.randn(5, VOCAB, generator=generator) * 3 for _ in range(20)]
    seeds = range(5)
    together = Bench(*EVERY, Edt(), SoftThinking(top_k=8), rows=5, seeds=seeds)
    alone = [Bench(*EVERY, Edt(), SoftThinking(top_k=8), seeds=[s]) for s in seeds]
    for logits in rows:
        tokens = together.run(logits=logits)
        for row, bench in enumerate(alone):
            assert int(bench.run(logits=logits[row : row + 1])[0]) == int(tokens[row])
            assert torch.equal(
                bench.core.next_input.weights[0], together.core.next_input.weights[row]
            )
