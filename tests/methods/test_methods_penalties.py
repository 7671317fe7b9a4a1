"""The thought switching penalty and NoWait."""

import re

import pytest
import torch
from logit_support import END, PIECES, START, VOCAB, Bench, Pieces

from tokenlens.methods._shared.logits import BAN
from tokenlens.methods.nowait.config import NOWAIT_WORDS
from tokenlens.methods.nowait.step import pattern_of
from tokenlens.methods.tip.step import THOUGHT_START
from tokenlens.spec import NoWait, SpecError, Tip

SWITCH, OTHER = 11, 15


def reference_tip(out, switch, alpha, beta):
    """The paper's rule over one request's output, in plain Python: the penalty now."""
    start = 0
    for t in range(len(out) + 1):
        if t and out[t - 1] in switch:
            start = t
    return -alpha if len(out) < start + beta else 0.0


def test_tip_is_the_papers_rule():
    bench, out = Bench(Tip(penalty=2.5, duration=4)), []
    tokens = [OTHER, OTHER, SWITCH, OTHER, OTHER, OTHER, OTHER, OTHER, SWITCH, SWITCH, *[OTHER] * 6]
    seen = set()
    for token in tokens:
        penalty = float(bench.edited()[0, SWITCH])
        assert penalty == reference_tip(out, {SWITCH}, 2.5, 4)
        seen.add(penalty)
        bench.run(token)
        out.append(token)
    assert seen == {0.0, -2.5}
    assert bench.get(THOUGHT_START).tolist() == [10]


def test_tips_default_is_the_papers_best():
    assert (Tip().penalty, Tip().duration, Tip().words) == (3.0, 600, ("alternatively",))
    edited = Bench(Tip(), rows=2).at(torch.tensor([599, 600])).edited()
    assert edited.nonzero().tolist() == [[0, SWITCH]]


def test_tip_is_off_outside_of_thinking():
    bench = Bench(Tip())
    bench.run(END)
    bench.run(SWITCH)
    assert not bench.edited().any()
    assert bench.get(THOUGHT_START).tolist() == [0]


def banned(bench):
    return (bench.edited()[0] == BAN).nonzero().flatten().tolist()


def test_nowait_bans_whole_words_while_thinking():
    bench = Bench(NoWait())
    assert banned(bench) == [4, 5, 6, 7, 8, 9, 10, 11, 22]
    bench.run(END)
    assert banned(bench) == []


def test_published_nowait_bans_substrings_in_the_answer_too():
    bench = Bench(NoWait(profile="published"))
    # " anyone" for "any", "butter" for "but": the rule's false positives
    everything = [4, 5, 6, 7, 8, 9, 10, 11, 20, 21, 22]
    assert banned(bench) == everything
    bench.run(END)
    assert banned(bench) == everything


@pytest.mark.parametrize(
    ("text", "word", "substring"),
    [("Wait", 1, 1), (" wait,", 1, 1), ("WAIT", 1, 1), ("awaits", 0, 1), ("company", 0, 1),
     ("Ohio", 0, 0), (" butterfly", 0, 0), ("butane", 0, 0), ("Button", 0, 0), ("attribute", 0, 1),
     ("double-check", 1, 1), ("check", 1, 1), ("ah", 1, 1), ("Aha", 0, 1), ("\nBut", 1, 1),
     ("hello", 0, 0), ("know", 0, 1), ("snow\nbutton", 0, 0)],
)  # fmt: skip
def test_what_the_two_rules_match(text, word, substring):
    for rule, wanted in (({}, word), ({"profile": "published"}, substring)):
        assert bool(re.search(pattern_of(NoWait(**rule)), text)) == bool(wanted)


def test_nowait_has_the_papers_seventeen_words():
    assert len(set(NOWAIT_WORDS)) == 17


def test_nowait_never_bans_the_end():
    pieces = Pieces(["<unk>", "<think>", "</wait>", "<but>", "wait"])
    assert banned(Bench(NoWait(), tokenizer=pieces, vocab=5)) == [4]


def test_nowait_without_any_token():
    with pytest.raises(SpecError, match=r"nowait\.words: got \['zebra'\]"):
        Bench(NoWait(words=("zebra",)))


def test_nowait_with_too_many_tokens():
    pieces = Pieces(["<unk>", "<think>", "</think>", "<eos>", *(f"any{n}" for n in range(1025))])
    with pytest.raises(SpecError, match=r"at most 1024 tokens of this tokenizer match \(1025 do\)"):
        Bench(NoWait(profile="published"), tokenizer=pieces, vocab=len(pieces.pieces))


def test_both_together_add_up():
    logits = torch.arange(float(VOCAB))[None]
    edited = Bench(Tip(), NoWait(), tokenizer=PIECES, prompt=(START,)).edited(logits)
    assert edited[0, SWITCH] == torch.tensor(SWITCH - 3.0) + BAN
    assert edited[0, OTHER] == OTHER
