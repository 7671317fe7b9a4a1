"""CyclicReflex, the static window, and the words that they change."""

import typing

import pytest
import torch
from logit_support import END, PIECES, START, VECTORS, VOCAB, Bench, Phase, Pieces

from tokenlens.core.columns import PHASE
from tokenlens.methods._shared import waves
from tokenlens.methods._shared.words import REFLECTION_WORDS
from tokenlens.methods.cyclic_reflex.config import Wave
from tokenlens.spec import CyclicReflex, SpecError, StaticWindow, Vocabulary, parse_spec

DELTAS = VECTORS["cyclicreflex_delta(A,C,shift,n_output_tokens)->delta"]
BARE = (4, 5, 8, 9, 11)


def test_every_recorded_delta_of_the_wave():
    assert len(DELTAS) > 80
    A, C, shift, t, delta = torch.tensor(DELTAS, dtype=torch.float64).unbind(1)
    kind = torch.zeros(len(DELTAS), dtype=torch.int64)
    found = waves.schedule(kind, A, C, shift, t.long())
    torch.testing.assert_close(found, delta, rtol=0, atol=1e-12)


@pytest.mark.parametrize("profile", ["default", "published"])
@pytest.mark.parametrize("line", range(0, len(DELTAS), 3))
def test_recorded_deltas_reach_the_logits(line, profile):
    A, C, shift, t, delta = DELTAS[line]
    method = CyclicReflex(
        profile=profile,
        amplitude=A,
        period=C,
        shift=shift,
        words=("wait", "Wait"),
        quirks={"forms": "bare"},
    )
    logits = torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(line))
    edited = Bench(method).at(t).edited(logits)
    wanted = logits.clone()
    wanted[:, [4, 5]] += torch.tensor(delta, dtype=torch.float32)
    torch.testing.assert_close(edited, wanted, rtol=0, atol=1e-6)
    others = [i for i in range(VOCAB) if i not in (4, 5)]
    assert torch.equal(edited[:, others], logits[:, others])


def test_the_papers_formula_and_the_mean():
    t = torch.arange(5000)
    for A, C in ((5.0, 1200.0), (3.0, 100.0), (2.0, 8.0)):
        one = torch.ones(len(t), dtype=torch.float64)
        found = waves.schedule(torch.zeros_like(t), A * one, C * one, 0 * one, t)
        paper = A * (4 * torch.remainder(t.double() - C / 4, C) / C - 2).abs() - A
        assert float((found - paper).abs().max()) < 1e-12
        assert abs(float(found[: int(C)].mean())) < 1e-12


def test_waves_share_zeros_and_peaks():
    cycle = torch.tensor([0.0, 0.25, 0.5, 0.75], dtype=torch.float64)
    assert waves.triangular(cycle).tolist() == [0, 1, 0, -1]
    torch.testing.assert_close(waves.cosine(cycle), waves.triangular(cycle), rtol=0, atol=1e-15)
    assert waves.square(cycle).tolist() == [1, 1, -1, -1]
    assert waves.constant(cycle).tolist() == [1, 1, 1, 1]


def test_every_wave_that_a_spec_may_name_exists():
    assert list(waves.WAVES) == list(typing.get_args(Wave))


def test_words_in_all_their_forms():
    edited = Bench(CyclicReflex(words=("wait", "But"), period=4)).at(1).edited()[0]
    # wait, Wait, " wait", " Wait", but, But, " But"
    assert edited.nonzero().flatten().tolist() == [4, 5, 6, 7, 8, 9, 10]
    assert edited[4:11].tolist() == [5.0] * 7


def test_the_published_words_are_bare():
    edited = Bench(CyclicReflex(profile="published", period=4)).at(1).edited()[0]
    assert tuple(edited.nonzero().flatten().tolist()) == BARE


def test_a_word_that_stands_twice_counts_twice_as_in_the_authors_code():
    words = ("wait", "wait", "But")
    edited = Bench(CyclicReflex(profile="published", period=4, words=words)).at(1).edited()[0]
    assert edited[[4, 9]].tolist() == [10.0, 5.0]


# Of the public vocabulary that Qwen1 to Qwen3 share.
QWEN = Pieces(
    {0: "!", 11489: "wait", 3783: " wait", 48750: "\twait", 14190: "Wait", 13824: " Wait",
     71032: "WAIT", 54390: " WAIT", 8088: "but", 714: " but", 10915: " BUT", 3983: "But",
     1988: " But", 92014: "Alternatively", 38478: " Alternatively", 68387: " alternatively"}
)  # fmt: skip


def test_the_ids_of_qwens_words():
    vocabulary = Vocabulary.of(QWEN, 151_669)
    words = REFLECTION_WORDS
    bare = vocabulary.words(words, "words", forms="bare", limit=99)
    assert bare == (11489, 14190, 8088, 3983, 92014)
    every = vocabulary.words(words, "words", limit=99)
    assert set(bare) < set(every)
    assert set(every) - set(bare) == {3783, 13824, 714, 1988, 38478, 68387}


def test_an_unknown_word_lists_what_was_found():
    with pytest.raises(SpecError) as caught:
        Bench(CyclicReflex(words=("wait", "hmm")))
    (problem,) = caught.value.problems
    assert problem.field == "cyclic_reflex.words"
    assert problem.got == "['hmm']"
    assert "{'wait': ['wait', 'Wait', ' wait', ' Wait']}" in problem.allowed


def test_an_unknown_word_of_the_published_profile_is_skipped():
    bench = Bench(CyclicReflex(profile="published", words=("hmm", "wait"), period=4)).at(1)
    assert bench.edited()[0].nonzero().flatten().tolist() == [4]
    with pytest.raises(SpecError, match=r"cyclic_reflex\.words"):
        Bench(CyclicReflex(profile="published", words=("hmm",)))


def test_words_need_a_tokenizer():
    with pytest.raises(SpecError, match="no tokenizer"):
        Bench(CyclicReflex(words=("wait",)), tokenizer=None)


def test_it_is_off_after_the_end_of_thinking():
    bench = Bench(CyclicReflex(words=("wait",), wave="constant"))
    assert bench.edited()[0, 4] == 5
    bench.run(END)
    assert bench.edited()[0, 4] == 0


ENDED = (START, 15, END)


@pytest.mark.parametrize(("profile", "bias"), [("default", 0), ("published", 5)])
def test_a_prompt_that_has_ended_thinking(profile, bias):
    method = CyclicReflex(profile=profile, words=("wait",), wave="constant")
    bench = Bench(method, prompt=ENDED)
    assert bench.get(PHASE).tolist() == [Phase.ANSWER]
    assert bench.edited()[0, 4] == bias
    bench.run(END)
    assert bench.edited()[0, 4] == 0


@pytest.mark.parametrize(("counted", "bias"), [("thinking", 0.0), ("output", 4.0)])
def test_what_is_counted(counted, bias):
    method = CyclicReflex(words=("wait",), period=8, amplitude=4, quirks={"counted": counted})
    bench = Bench(method, prompt=(15,))
    bench.run(15)
    bench.run(START)
    assert bench.edited()[0, 4] == bias


def test_the_prompts_thinking_can_be_counted():
    for count_prompt, bias in ((False, 0.0), (True, 4.0)):
        method = CyclicReflex(words=("wait",), period=8, amplitude=4, count_prompt=count_prompt)
        assert Bench(method, prompt=(START, 15, 16)).edited()[0, 4] == bias


def test_windows():
    method = CyclicReflex(words=("wait",), wave="constant", windows=((0, 2), (3, 4), (4, 5)))
    found = Bench(method, rows=7).at(torch.arange(7)).edited()[:, 4]
    assert found.tolist() == [5, 5, 0, 5, 5, 0, 0]


def test_the_static_window_is_a_constant_penalty():
    bench = Bench(StaticWindow(profile="published", windows=((0, 600),)), rows=3)
    edited = bench.at(torch.tensor([0, 599, 600])).edited()
    assert edited[:, BARE].tolist() == [[-3.0] * 5, [-3.0] * 5, [0.0] * 5]


def test_rows_of_one_batch_have_schedules_of_their_own():
    first = Bench(CyclicReflex(words=("wait",), period=8), rows=2).at(2)
    request = Bench(StaticWindow(words=("But",))).core._request_of[0]
    first.core.add(1, request, [START])
    edited = first.edited(torch.ones(2, VOCAB))
    assert (edited - 1).nonzero().tolist() == [[0, i] for i in (4, 5, 6, 7)] + [
        [1, i] for i in (8, 9, 10)
    ]


def test_other_rows_keep_their_bits():
    bench = Bench(CyclicReflex(words=("wait",), period=8), rows=3).at(2)
    bench.core.remove(1)
    logits = torch.randn(3, VOCAB + 2)
    logits[1, :4] = torch.tensor([-0.0, torch.inf, -torch.inf, torch.nan])
    edited = bench.core.step(logits, torch.tensor([0, bench.core.table.null_slot, 2]))
    assert torch.equal(edited[1].view(torch.int32), logits[1].view(torch.int32))
    assert not torch.equal(edited[0], logits[0])


def test_it_changes_the_concept_token_as_well():
    soft = {"method": "soft_thinking", "top_k": 4, "temperature": 1.0, "top_p": 1.0}
    wave = {
        "method": "cyclic_reflex",
        "words": ["wait"],
        "quirks": {"forms": "bare"},
        "wave": "constant",
    }
    logits = torch.full((1, VOCAB), -9.0)
    logits[0, [15, 16, 4]] = torch.tensor([3.0, 2.0, 1.0])
    weights = {}
    for name, methods in (("soft", [soft]), ("both", [wave, soft])):
        bench = Bench(*parse_spec({"methods": methods}).methods)
        bench.run(logits=logits)
        pairs = zip(
            bench.core.next_input.ids[0].tolist(), bench.core.next_input.weights[0].tolist()
        )
        weights[name] = {token: weight for token, weight in pairs if weight > 0}
    assert max(weights["soft"], key=weights["soft"].get) == 15
    assert max(weights["both"], key=weights["both"].get) == 4
    # The other two keep their ratio.
    ratios = [w[15] / w[16] for w in weights.values()]
    assert ratios[0] == pytest.approx(ratios[1])


def test_a_vocabulary_is_kept_with_its_tokenizer():
    assert Vocabulary.of(PIECES, VOCAB) is Vocabulary.of(PIECES, VOCAB)
    assert Vocabulary.of(PIECES, VOCAB) is not Vocabulary.of(PIECES, VOCAB - 1)
