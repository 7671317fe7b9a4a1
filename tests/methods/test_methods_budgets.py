"""Thinking budgets, S1's budget forcing and AlphaOne, beside the recorded runs of other code."""

import math

import pytest
import torch
from logit_support import END, PIECES, START, VOCAB, Bench, Phase

from tokenlens.core.columns import PHASE
from tokenlens.methods.alpha_one import step as alpha_one
from tokenlens.methods.s1.step import LEFT
from tokenlens.spec import (
    S1,
    AlphaOne,
    PhaseConfig,
    SoftThinking,
    SpecError,
    ThinkingBudget,
    parse_spec,
)

WAIT, LINE, BREAK, OTHER = 5, 14, 12, 15


def decode(*methods, favourite=OTHER, steps=12, **bench):
    return Bench(*methods, **bench).decode(steps, favourite if callable(favourite) else
                                           lambda step: favourite)  # fmt: skip


def budget(tokens, **more):
    return ThinkingBudget(budget=tokens, **more)


# Runs of vLLM's two implementations with an open prompt.
@pytest.mark.parametrize("tokens", [0, 1, 3, 4])
def test_the_end_comes_where_vllm_puts_it(tokens):
    assert decode(budget(tokens)).index(END) == tokens


def test_vllms_other_runs():
    assert decode(budget(4), prompt=(START, 16, 17)).index(END) == 2
    assert decode(budget(4), prompt=(START, 16, 17, 16, 17, 16)).index(END) == 0
    assert decode(budget(4, count_prompt=False), prompt=(START, 16, 17)).index(END) == 4

    def opens(step):
        return lambda at: START if at == step else OTHER

    assert decode(budget(3), prompt=(16,), favourite=opens(0)).index(END) == 4
    # Three tokens, the third of which opens the thinking.
    assert decode(budget(3), prompt=(16,), favourite=opens(2)).index(END) == 6
    # One more before it, and the end is one later: it is counted from the marker.
    assert decode(budget(3), prompt=(16,), favourite=opens(3)).index(END) == 7


def test_a_second_block_is_counted_too():
    def opens(*steps):
        return lambda at: START if at in steps else OTHER

    # Nothing is left for it.
    out = decode(budget(2), favourite=opens(4), steps=9)
    assert out == [OTHER, OTHER, END, OTHER, START, END, OTHER, OTHER, OTHER]

    # The first block ended by itself: the second one has the rest.
    def own_end(at):
        return {1: END, 3: START}.get(at, OTHER)

    out = decode(budget(5), favourite=own_end, steps=9)
    assert out == [OTHER, END, OTHER, START, OTHER, OTHER, OTHER, END, OTHER]


def test_s1_prolongs_a_second_block_and_ends_it():
    wants = [OTHER, END, 16, END, 16, START, END, 16, 16]
    assert Bench(S1(ignore_end=1)).decode(9, wants) == [
        *(OTHER, 5, 16, END, 16, START, END, 16, 16)
    ]
    assert Bench(S1(ignore_end=2)).decode(9, [OTHER, END, 16, 16, END, START, 16, 16, END]) == [
        *(OTHER, 5, 16, 16, 5, START, 16, 16, END)
    ]
    out = Bench(S1(ignore_end=0, max_thinking=3)).decode(7, [OTHER, END, 16, START, 16, 16, 16])
    assert out == [OTHER, END, 16, START, 16, END, 16]


def test_the_whole_output_can_be_counted():
    def opens(at):
        return START if at == 1 else OTHER

    assert decode(budget(4, counted="output"), prompt=(16,), favourite=opens).index(END) == 4


# Runs of SGLang's processor, which ends with a line break and the marker.
SGLANG = ThinkingBudget(budget=4, text="\n</think>")


def test_sglangs_runs():
    assert decode(SGLANG)[:6] == [OTHER] * 4 + [LINE, END]
    # The line break of the prompt is a thinking token, but not the one that is written.
    assert decode(SGLANG, prompt=(START, LINE))[:5] == [OTHER] * 3 + [LINE, END]
    assert decode(ThinkingBudget(budget=0, text="\n</think>"))[:2] == [LINE, END]
    natural = decode(SGLANG, favourite=lambda at: LINE if at == 3 else OTHER)
    assert natural[:6] == [OTHER] * 3 + [LINE, END, OTHER], "a natural line break is used"


def test_a_forced_text_comes_once():
    # B13: SGLang's, one step behind, repeats both tokens; B14: vLLM's never stops.
    out = decode(SGLANG, steps=40)
    assert (out.count(LINE), out.count(END)) == (1, 1)
    with pytest.raises(SpecError, match=r"thinking_budget\.text.*a text with the end marker"):
        Bench(ThinkingBudget(budget=3, text="\n"))


def test_a_natural_prefix_of_a_long_end_is_completed():
    # B15: at the boundary vLLM's V1 writes 4 4 5, its V2 writes 4 5.
    markers = PhaseConfig(think_start=(START,), think_end=(18, 19))
    for written, wanted in ((OTHER, [OTHER] * 3 + [18, 19]), (18, [OTHER, OTHER, 18, 19, OTHER])):
        choose = {2: written}
        out = decode(budget(3), phase=markers, favourite=lambda at, c=choose: c.get(at, OTHER))
        assert out[:5] == wanted


@pytest.mark.parametrize(("breaks", "end"), [((3,), 5), ((5,), 6), ((6,), 7), ((8, 9), 8), ((), 8)])
def test_stop_at_the_end_of_a_step(breaks, end):
    """Budget 5, grace 3: after a break that comes then or later, at the latest at 8."""
    method = ThinkingBudget(budget=5, stop="step", grace=3)
    out = decode(method, favourite=lambda at: BREAK if at in breaks else OTHER)
    end = 8 if breaks == (3,) else end
    assert out.index(END) == end


def test_a_break_just_before_the_budget_counts():
    method = ThinkingBudget(budget=5, stop="step", grace=3)
    out = decode(method, favourite=lambda at: 13 if at == 4 else OTHER)
    assert out.index(END) == 5, "'.\\n\\n' ends a step too"


def test_the_ramp_raises_the_end_marker():
    method = ThinkingBudget(budget=100, ramp=0.3, ramp_strength=6.0)
    edited = Bench(method, rows=5).at(torch.tensor([0, 70, 80, 85, 99])).edited()
    assert edited[:, END].tolist() == pytest.approx([0, 0, 2, 3, 5.8])
    edited[:, END] = 0
    assert not edited.any()


def test_the_ramp_of_a_long_marker_raises_its_next_token():
    markers = PhaseConfig(think_start=(START,), think_end=(18, 19))
    bench = Bench(ThinkingBudget(budget=10, ramp=1.0), phase=markers).at(5)
    assert bench.edited()[0, [18, 19]].tolist() == [5, 0]
    bench.run(18)
    assert bench.edited()[0, [18, 19]].tolist() == [0, 6]


def test_a_smaller_budget_of_the_engine_wins():
    bench = Bench(budget(6))
    out = []
    for step in range(9):
        # The engine's own budget forces the marker after four tokens, after our edit.
        out.append(int(bench.run(END if step == 4 else None)[0]))
    assert out.index(END) == 4
    assert out.count(END) == 1


def test_it_ends_soft_thinking():
    out = decode(budget(3), SoftThinking(top_k=4))
    assert out.index(END) == 3


def s1_by_hand(wants, ignore, limit=None, prefix=()):
    """Sample first, replace then: the README's loop, greedily."""
    out, ended, thought = [], False, 0
    for want in wants:
        if not ended and limit is not None and thought >= limit:
            out += [END, *prefix]
            ended = True
        elif not ended and want == END and ignore > 0:
            out.append(WAIT)
            ignore -= 1
            thought += 1
        else:
            ended = ended or want == END
            out.append(want)
            thought += 1
    return out


@pytest.mark.parametrize("ignore", [0, 1, 2, 4])
def test_s1_replaces_early_ends(ignore):
    wants = [OTHER, END, 16, 17, END, OTHER, 16, END, OTHER]
    out = Bench(S1(ignore_end=ignore)).decode(len(wants), wants)
    assert out == s1_by_hand(wants, ignore)


def test_s1_does_not_end_right_after_the_text():
    # The authors ask for one token at least after "Wait".
    out = Bench(S1(ignore_end=1)).decode(6, [OTHER, END, END, END, OTHER, OTHER])
    assert out[:2] == [OTHER, WAIT]
    assert out[2] != END
    assert out[3] == END


def test_s1_forces_the_end_and_the_prefix():
    method = S1(ignore_end=1, max_thinking=4, answer_prefix="\na")
    out = Bench(method).decode(9, [OTHER, END, 16, 17, 16, 16, 16, 16, 16])
    assert out == [OTHER, WAIT, 16, 17, END, LINE, OTHER, 16, 16]
    # No prefix after an end of the model's own.
    early = Bench(S1(ignore_end=0, max_thinking=4, answer_prefix="\na"))
    assert early.decode(5, [OTHER, END, 16, 16, 16]) == [OTHER, END, 16, 16, 16]


def test_s1s_text_may_be_long():
    out = Bench(S1(text="Wait.\n\n")).decode(6, [OTHER, END, 16, 16, END, 16])
    assert out == [OTHER, WAIT, 13, 16, END, 16]


def test_s1_in_soft_thinking():
    bench = Bench(S1(ignore_end=1), SoftThinking(top_k=4))
    assert bench.decode(5, [OTHER, END, 16, END, 16]) == [OTHER, WAIT, 16, END, 16]


def test_s1_with_a_long_marker():
    markers = PhaseConfig(think_start=(START,), think_end=(18, 19))
    wants = [OTHER, 18, 19, 16, 18, 19, 16]
    out = Bench(S1(ignore_end=1), phase=markers).decode(len(wants), wants)
    # Its first token decides: nothing of the marker stays.
    assert out == [OTHER, WAIT, 19, 16, 18, 19, 16]


def test_a_replaced_end_is_as_frequent_as_a_sampled_one():
    """Replacing before sampling has the distribution of sampling before replacing."""
    rows, T = 6000, 0.7
    logits = torch.full((rows, VOCAB), -1e4)
    logits[:, [END, 15, 16]] = torch.tensor([1.0, 0.6, 0.1])
    bench = Bench(S1(ignore_end=1, temperature=T), rows=rows, seeds=range(rows))
    edited = bench.edited(logits)
    torch.manual_seed(0)
    tokens = torch.softmax(edited / T, 1).multinomial(1)[:, 0]
    found = torch.bincount(tokens, minlength=VOCAB)[[WAIT, 15, 16]] / rows
    wanted = torch.softmax(torch.tensor([1.0, 0.6, 0.1]) / T, 0)
    assert float((found - wanted).abs().max()) < 5 * 0.5 / rows**0.5
    assert not (tokens == END).any()


def test_alpha_ones_quoted_probabilities():
    method = AlphaOne(average_thinking=4600)
    moment = math.ceil(method.alpha * method.average_thinking)
    # theta of the authors at 8192 tokens
    assert 8192 - moment == 1752
    count = torch.tensor([2, 1610, 3220, 6440, 7000])
    found = alpha_one.slow_probability(count, torch.tensor([moment]))
    assert found.tolist() == pytest.approx([0.9997, 0.75, 0.5, 0, 0], abs=5e-5)


def test_alpha_one_forces_after_steps_as_often_as_it_should():
    rows = 3000
    method = AlphaOne(average_thinking=10, alpha=1.0)
    bench = Bench(method, rows=rows, seeds=range(rows))
    for token in (OTHER, OTHER, OTHER, BREAK):
        bench.run(token)
    forced = (bench.edited().argmax(1) == WAIT).double().mean()
    assert float(forced) == pytest.approx(0.6, abs=5 * 0.5 / rows**0.5)


def test_alpha_one_does_nothing_inside_a_step():
    method = AlphaOne(average_thinking=10_000)
    assert decode(method) == [OTHER] * 12
    out = decode(method, favourite=lambda at: BREAK if at == 3 else OTHER)
    assert out[:6] == [OTHER, OTHER, OTHER, BREAK, WAIT, OTHER]
    early = decode(method, favourite=lambda at: BREAK if at == 0 else OTHER)
    assert early[:2] == [BREAK, OTHER], "two tokens come first"


def test_after_the_moment_a_word_ends_thinking():
    method = AlphaOne(average_thinking=4, alpha=1.0)
    for word in (4, 5, 6, 7):
        out = decode(method, favourite=lambda at, w=word: w if at in (5, 8) else OTHER)
        assert out[5] == END
        assert out[8] == word, "the answer may have it"
    assert decode(method, favourite=lambda at: BREAK if at == 5 else OTHER)[5:7] == [BREAK, OTHER]


def test_alpha_ones_published_words_and_steps():
    method = AlphaOne(profile="published", average_thinking=4, alpha=1.0)
    out = decode(method, favourite=lambda at: {5: 6, 6: WAIT}.get(at, OTHER))
    assert (out[5], out[6]) == (6, END)
    bench = Bench(AlphaOne(profile="published", average_thinking=1000))
    ids = set(bench.core.table.column(alpha_one.STEP_ENDS)[0].tolist()) - {-1}
    # "," and the brackets are no tokens of their own here and become the unknown token.
    assert ids == {0, BREAK, 13}


def test_a_method_that_prolongs_may_not_write_the_end():
    for method in (S1(text="a</think>"), AlphaOne(average_thinking=9, text="</think>")):
        with pytest.raises(SpecError, match="without the end of thinking"):
            Bench(method)


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ([{"method": "thinking_budget", "budget": 3}, {"method": "answer_now", "after": 3}],
         "methods: got thinking_budget and answer_now; allowed: one of them"),
        ([{"method": "s1", "max_thinking": 3}, {"method": "thinking_budget", "budget": 3}],
         "methods: got s1 and thinking_budget; allowed: one of them"),
        ([{"method": "s1", "answer_prefix": "a"}], "an answer_prefix only beside max_thinking"),
    ],
)  # fmt: skip
def test_two_budgets_and_a_prefix_without_an_end(methods, message):
    with pytest.raises(SpecError, match=message):
        parse_spec({"methods": methods})


def test_s1_without_a_limit_goes_with_a_budget():
    bench = Bench(S1(ignore_end=5), budget(4))
    out = bench.decode(6, [END, 16, END, 16, 16, 16])
    assert out == [WAIT, 16, WAIT, 16, END, 16]
    assert bench.get(LEFT).tolist() == [3]
    assert bench.get(PHASE).tolist() == [Phase.ANSWER]


def test_a_budget_in_the_middle_of_a_forced_text_waits_for_it():
    out = Bench(S1(text="Wait.\n\n"), budget(2)).decode(5, [OTHER, END, 16, 16, 16])
    assert out == [OTHER, WAIT, 13, END, 16]


def test_pieces_write_what_the_tests_say():
    assert PIECES.encode("Wait.\n\n") == [WAIT, 13]
