"""Where a request is: from its prompt, and from every token after it."""

import pytest
import torch
from built_in import bind
from core_solo import END, EOS, MARKERS, START, Letters, Solo, peaked

from tokenlens import DecodingSpec, SpecError, parse_spec
from tokenlens.core import Phase
from tokenlens.core.columns import FORCE_LENGTH, PHASE, THINKING_TOKENS
from tokenlens.spec import (
    S1,
    AlphaOne,
    AnswerNow,
    ColdStop,
    GumbelNoise,
    NoThinking,
    PhaseConfig,
    SoftThinking,
    ThinkingBudget,
    TraceConfig,
)

BLANK, LETTER = 1, 9
TOKENIZER = Letters("_ .<>abcdefgh")
SOFT = SoftThinking(top_k=8, max_entries=8)
SEVERAL = PhaseConfig(think_start=(3, 5), think_end=(4, 5, 6))


def phase_of(prompt, phase=MARKERS, method=SOFT, tokenizer=TOKENIZER):
    return Solo(method, prompt=prompt, phase=phase, tokenizer=tokenizer).column(PHASE)


PROMPTS = {
    "empty": ([], Phase.PROMPT),
    "no marker": ([9, 10], Phase.PROMPT),
    "open start": ([9, START], Phase.THINKING),
    "open start with text": ([START, 9, 10], Phase.THINKING),
    "closed at once": ([START, END], Phase.ANSWER),
    "closed, blanks behind": ([START, BLANK, END, BLANK, BLANK], Phase.ANSWER),
    "closed, text behind": ([START, END, LETTER], Phase.PROMPT),
    "an end alone": ([END], Phase.ANSWER),
    "an earlier turn, then open": ([START, END, LETTER, START], Phase.THINKING),
    "an earlier turn, then closed": ([START, END, LETTER, START, END, BLANK], Phase.ANSWER),
}


@pytest.mark.parametrize("case", PROMPTS)
def test_the_phase_after_a_prompt(case):
    prompt, wanted = PROMPTS[case]
    assert phase_of(prompt) == wanted


@pytest.mark.parametrize("behind", [[LETTER], [LETTER, EOS, 8, 9], [EOS]])
def test_without_a_tokenizer_a_finished_thought_is_an_earlier_turn_s(behind):
    prompt = [START, END, *behind]
    assert phase_of(prompt, tokenizer=None) == Phase.PROMPT
    solo = Solo(SOFT, prompt=prompt)
    solo.run(peaked(START), START)
    assert solo.run(peaked(9)).latent


@pytest.mark.parametrize("tokenizer", [TOKENIZER, None])
@pytest.mark.parametrize("behind", [[EOS], [LETTER, EOS, BLANK], [EOS, 8, 9]])
def test_an_open_start_in_front_of_the_end_of_a_turn_is_somebody_else_s(behind, tokenizer):
    assert phase_of([8, START, *behind], tokenizer=tokenizer) == Phase.PROMPT
    assert phase_of([8, START, *behind, START, 9], tokenizer=tokenizer) == Phase.THINKING


@pytest.mark.parametrize("case", PROMPTS)
def test_the_published_profile_thinks_from_the_first_token(case):
    published = SoftThinking(
        profile="published", top_k=8, max_entries=8, quirks={"start": "first_token"}
    )
    assert phase_of(PROMPTS[case][0], method=published) == Phase.THINKING


def test_half_a_marker_in_the_prompt_is_none():
    assert phase_of([4, 5], SEVERAL) == Phase.PROMPT


def test_a_marker_may_begin_in_the_prompt():
    solo = Solo(SOFT, prompt=[9, 3], phase=SEVERAL)
    solo.run(peaked(5), 5)
    assert solo.column(PHASE) == Phase.THINKING


def test_an_empty_prompt_thinks_once_the_model_opens():
    solo = Solo(SOFT, prompt=[])
    assert not solo.run(peaked(9)).latent
    assert not solo.run(peaked(START)).forced
    assert solo.column(PHASE) == Phase.THINKING
    assert solo.run(peaked(9)).latent


def test_a_marker_of_several_tokens_crosses_steps():
    solo = Solo(SOFT, prompt=[3, 5], phase=SEVERAL)
    phases = []
    for token in (4, 5, 9, 4, 4, 5, 6):
        solo.run(peaked(token), token)
        phases.append(solo.column(PHASE))
    assert phases == [Phase.THINKING] * 6 + [Phase.ANSWER]


def phases_of(solo, tokens):
    found = []
    for token in tokens:
        solo.run(peaked(token), token)
        found.append(solo.column(PHASE))
    return found


@pytest.mark.parametrize("markers", [MARKERS, PhaseConfig(think_start=(START,), think_end=(4, 6))])
def test_thinking_may_be_opened_again(markers):
    solo = Solo(SOFT, prompt=[START], phase=markers)
    end = list(markers.think_end)
    phases_of(solo, [9, *end, 8])
    assert solo.column(PHASE) == Phase.ANSWER
    assert not solo.latent
    assert phases_of(solo, [START]) == [Phase.THINKING]
    assert solo.run(peaked(9)).latent
    assert phases_of(solo, end)[-1] == Phase.ANSWER
    assert solo.column(THINKING_TOKENS) == 2 + 2 * len(end)


def test_where_thinking_begins_with_the_first_token_it_is_over_for_good():
    published = SoftThinking(
        profile="published", top_k=8, max_entries=8, quirks={"start": "first_token"}
    )
    assert phases_of(Solo(published), [9, END, START]) == [1, 2, 2]


def test_controls_end_thinking_whenever_it_is_opened():
    for method, first in ((NoThinking(), 0), (AnswerNow(after=2), 2)):
        solo = Solo(method)
        assert visible(solo, peaked(9), first + 2) == [9] * first + [END, 9]
        solo.run(peaked(START), START)
        assert visible(solo, peaked(9), 2) == [END, 9]


class Merging(Letters):
    """Writes ``</>`` as 3 tokens, and its ends also merged with what stands beside them."""

    pieces = ("<", "/", ">", ">\n", "\n", "a", "(", ".<", "></", ">.")

    def encode(self, text, *, add_special_tokens=True):
        ids = []
        while text:
            piece = max((p for p in self.pieces if text.startswith(p)), key=len)
            ids.append(self.pieces.index(piece))
            text = text[len(piece) :]
        return ids

    def decode(self, ids, **kwargs):
        return "".join(self.pieces[i] for i in ids)


@pytest.mark.parametrize(
    ("ending", "at"),
    [([0, 1, 2], 2), ([0, 1, 3], 2), ([5, 7, 1, 9], 3), ([0, 0, 1, 2], 3), ([0, 1, 8, 2], 2)],
)
def test_a_marker_of_several_tokens_is_seen_in_every_surrounding(ending, at):
    phase = PhaseConfig(think_start="(", think_end="</>")
    solo = Solo(SOFT, prompt=[6], phase=phase, tokenizer=Merging(), eos=())
    found = phases_of(solo, ending)
    assert found == [Phase.THINKING] * at + [Phase.ANSWER] * (len(ending) - at)


def test_what_stands_behind_a_marker_in_its_token_is_answer():
    phase = PhaseConfig(think_start="(", think_end="</>")
    tokenizer = Merging()
    for prompt, wanted in (([6, 0, 1, 3], Phase.ANSWER), ([6, 0, 1, 9], Phase.PROMPT)):
        solo = Solo(SOFT, prompt=prompt, phase=phase, tokenizer=tokenizer, eos=())
        assert solo.column(PHASE) == wanted
    # The marker may begin in the prompt's last token.
    solo = Solo(SOFT, prompt=[6, 7, 1], phase=phase, tokenizer=tokenizer, eos=())
    assert phases_of(solo, [3]) == [Phase.ANSWER]


# Forced sequences.


def visible(solo, row, steps):
    return [int(solo.run(row).token) for _ in range(steps)]


@pytest.mark.parametrize(
    "method",
    [
        AnswerNow(after=1),
        SoftThinking(top_k=8, max_entries=8, cold_stop=ColdStop(entropy_threshold=1.0, patience=2)),
        AlphaOne(
            alpha=1.0,
            average_thinking=1,
            text="a",
            words=("a",),
            quirks={"forms": "bare"},
            step_ends=("\n",),
        ),
        ThinkingBudget(budget=1),
        S1(ignore_end=0, max_thinking=1, text="a"),
    ],
    ids=lambda method: method.method,
)
@pytest.mark.parametrize(("first", "rest"), [(7, [1, 2]), (0, [1, 2]), (5, [0, 1, 2])])
def test_an_end_that_the_model_has_begun_is_completed(method, first, rest):
    phase = PhaseConfig(think_start="(", think_end="</>")
    solo = Solo(method, prompt=[6], phase=phase, tokenizer=Merging(), eos=())
    written = visible(solo, peaked(first, 30.0), 1)
    # "a" is what ends thinking where a word does.
    written += visible(solo, peaked(5, 30.0), len(rest))
    assert written == [first, *rest]
    assert solo.column(PHASE) == Phase.ANSWER


def test_no_thinking_forces_the_whole_end_marker_at_once():
    solo = Solo(NoThinking(), prompt=[3, 5], phase=SEVERAL)
    assert visible(solo, peaked(9), 4) == [4, 5, 6, 9]
    assert solo.column(PHASE) == Phase.ANSWER


def test_no_thinking_waits_for_thinking():
    solo = Solo(NoThinking(), prompt=[])
    assert visible(solo, peaked(9), 2) == [9, 9]
    solo.run(peaked(START), START)
    assert visible(solo, peaked(9), 2) == [END, 9]


def test_no_thinking_leaves_an_answer_alone():
    assert visible(Solo(NoThinking(), prompt=[START, END]), peaked(9), 3) == [9, 9, 9]


def test_no_thinking_with_a_text_of_its_own():
    # "ab>" ends with the end marker, which is the character ">".
    solo = Solo(NoThinking(text="ab>"), tokenizer=TOKENIZER)
    assert visible(solo, peaked(9), 5) == [5, 6, END, 9, 9]
    assert solo.column(PHASE) == Phase.ANSWER


def test_a_text_without_the_end_marker_is_forced_once():
    solo = Solo(NoThinking(text="ab"), tokenizer=TOKENIZER)
    assert visible(solo, peaked(9), 4) == [5, 6, 9, 9]
    assert solo.column(PHASE) == Phase.THINKING


@pytest.mark.parametrize("after", [0, 1, 3])
def test_answer_now_ends_thinking_after_so_many_tokens(after):
    solo = Solo(AnswerNow(after=after))
    assert visible(solo, peaked(9), after + 2) == [9] * after + [END, 9]
    assert solo.column(THINKING_TOKENS) == after + 1


def test_answer_now_with_a_text_of_its_own():
    solo = Solo(AnswerNow(after=1, text="a>"), tokenizer=TOKENIZER)
    assert visible(solo, peaked(9), 4) == [9, 5, END, 9]
    assert solo.column(PHASE) == Phase.ANSWER


def test_answer_now_does_nothing_if_the_model_ended_thinking_itself():
    solo = Solo(AnswerNow(after=3))
    solo.run(peaked(END), END)
    assert visible(solo, peaked(9), 4) == [9] * 4


def test_the_forced_token_is_lifted_and_all_else_is_bit_equal():
    solo, row = Solo(NoThinking()), peaked(9)
    edited = solo.step(row)
    assert int(edited.argmax()) == END
    others = torch.arange(len(row)) != END
    assert torch.equal(edited[others], row[others])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_a_forced_token_is_certain_at_every_temperature(dtype):
    edited = Solo(NoThinking()).step(peaked(9).to(dtype))
    for temperature in (0.3, 1.0, 10.0):
        probabilities = (edited / temperature).softmax(0)
        assert float(probabilities[END]) == 1.0


def test_an_engine_that_overrides_a_forced_token_gets_it_again():
    solo = Solo(NoThinking())
    assert int(solo.step(peaked(9)).argmax()) == END
    record = solo.commit(7)
    assert not record.forced
    assert solo.column(PHASE) == Phase.THINKING
    assert visible(solo, peaked(9), 2) == [END, 9]
    assert solo.column(FORCE_LENGTH) == 0


def test_a_forced_text_that_an_engine_breaks_in_two_begins_again():
    solo = Solo(AnswerNow(after=0, text="ab>"), tokenizer=TOKENIZER)
    solo.step(peaked(9))
    solo.commit()
    solo.step(peaked(9))
    solo.commit(7)
    assert visible(solo, peaked(9), 4) == [5, 6, END, 9]
    assert solo.column(PHASE) == Phase.ANSWER


def test_an_engine_that_overrides_a_latent_token_makes_it_discrete():
    solo = Solo(SOFT)
    solo.step(peaked(9, 2.0))
    record = solo.commit(7)
    assert not record.latent
    assert not record.forced
    assert solo.entries == {7: 1.0}


# Cold Stop.

COLD = SoftThinking(top_k=8, max_entries=8, cold_stop=ColdStop(entropy_threshold=1.0, patience=2))


def test_cold_stop_forces_every_token_of_the_marker():
    solo = Solo(COLD, prompt=[3, 5], phase=SEVERAL)
    assert visible(solo, peaked(9, 30.0), 5) == [9, 4, 5, 6, 9]


def test_a_marker_that_is_being_forced_is_one_cold_stop():
    from tokenlens.methods.soft_thinking.step import COLD_STOPS

    cold = SoftThinking(
        top_k=8, max_entries=8, cold_stop=ColdStop(entropy_threshold=1.0, patience=1)
    )
    solo = Solo(cold, prompt=[3, 5], phase=SEVERAL)
    visible(solo, peaked(9, 30.0), 4)
    assert solo.column(COLD_STOPS) == 1


def test_the_published_profile_forces_the_last_token_of_the_marker():
    published = parse_spec(
        {"methods": [{**COLD.model_dump(), "quirks": {"forced_end": "last_token"}}]}
    )
    solo = Solo(*published.methods, prompt=[3, 5], phase=SEVERAL)
    assert visible(solo, peaked(9, 30.0), 3) == [9, 6, 9]
    assert solo.column(PHASE) == Phase.ANSWER


def test_a_warm_step_starts_the_count_again():
    solo = Solo(COLD)
    tokens = [int(solo.run(peaked(9, height)).token) for height in (30.0, 1.1, 30.0, 30.0)]
    assert tokens == [9, 9, 9, END]


def test_a_patience_that_is_not_reached_ends_nothing():
    assert visible(Solo(COLD), peaked(9, 1.1), 6) == [9] * 6


def test_an_entropy_may_be_a_fraction_of_the_vocabularys():
    # Flat logits have the entropy ln(V): a fraction of 1, which is not below 0.99 and is below 1.1.
    for threshold, wanted in ((0.99, 0), (1.1, END)):
        stop = ColdStop(entropy_threshold=threshold, patience=1, entropy_unit="fraction")
        solo = Solo(SoftThinking(top_k=8, max_entries=8, cold_stop=stop))
        assert int(solo.run(torch.zeros(13)).token) == wanted


# End of text.


def test_an_end_of_text_while_latent_ends_the_request():
    solo = Solo(SOFT)
    record = solo.run(peaked(EOS))
    assert int(record.token) == EOS
    assert not record.latent
    after = solo.run(peaked(9), 9)
    assert not after.advanced
    assert not solo.latent


def test_an_end_of_text_may_be_forbidden_while_latent():
    forbid = SoftThinking(top_k=8, max_entries=8, eos_while_latent="forbid")
    solo = Solo(forbid, eos=(EOS, 11))
    edited = solo.step(peaked(EOS))
    assert edited[EOS] == -torch.inf
    assert edited[11] == -torch.inf
    assert int(solo.commit().token) not in (EOS, 11)
    assert EOS not in solo.entries


def test_an_end_of_text_is_allowed_in_the_answer():
    forbid = SoftThinking(top_k=8, max_entries=8, eos_while_latent="forbid")
    solo, row = Solo(forbid, prompt=[START, END]), peaked(EOS)
    assert torch.equal(solo.step(row), row)


def test_a_finished_request_ignores_the_engines_padding():
    solo = Solo(SOFT)
    solo.run(peaked(EOS))
    records = [solo.run(peaked(0), 0) for _ in range(3)]
    assert not any(record.advanced for record in records)


# What cannot be bound.


def refused(*methods, match, vocab_size=13, phase=MARKERS, tokenizer=None, eos=(), **spec):
    spec = DecodingSpec(methods=methods, phase=phase, **spec)
    with pytest.raises(SpecError, match=match):
        bind(spec, tokenizer=tokenizer, vocab_size=vocab_size, eos_ids=eos)


def test_a_top_k_above_the_vocabulary():
    refused(SoftThinking(top_k=14, max_entries=8), match=r"top_k: got 14.*vocabulary's 13")


def test_max_entries_above_the_vocabulary():
    refused(SoftThinking(top_k=8, max_entries=14), match=r"max_entries: got 14.*vocabulary's 13")


@pytest.mark.parametrize("field", ["think_start", "think_end"])
def test_a_marker_beyond_the_vocabulary(field):
    phase = MARKERS.model_copy(update={field: (13,)})
    refused(SOFT, phase=phase, match=rf"phase\.{field}: got 13.*below the vocabulary's 13")


@pytest.mark.parametrize("field", ["think_start", "think_end"])
def test_a_missing_think_marker(field):
    phase = MARKERS.model_copy(update={field: None})
    # The letters can write the marker, but in several tokens.
    letters = Letters("_<>/think")
    refused(SOFT, phase=phase, tokenizer=letters, match=rf"phase\.{field}: got None.*takes [78]")


@pytest.mark.parametrize("field", ["think_start", "think_end"])
def test_a_think_marker_that_cannot_be_written(field):
    phase = MARKERS.model_copy(update={field: None})
    # Nobody named it, so that the text to look for is not the user's.
    found = rf"phase\.{field}: got None.*is not a token of this tokenizer.*phase: none"
    refused(SOFT, phase=phase, tokenizer=TOKENIZER, match=found)
    phase = MARKERS.model_copy(update={field: "<think>"})
    refused(SOFT, phase=phase, tokenizer=TOKENIZER, match=rf"phase\.{field}.*can write")


def test_a_text_marker_without_a_tokenizer():
    refused(SOFT, phase=PhaseConfig(think_start="<", think_end=">"), match="no tokenizer was given")


def test_a_forced_text_without_a_tokenizer():
    refused(NoThinking(text="ab"), match=r"no_thinking\.text: got 'ab'")


def test_a_forced_text_that_is_too_long():
    refused(NoThinking(text="a" * 33), tokenizer=TOKENIZER, match="at most 32 tokens")


def test_a_forced_text_that_the_tokenizer_cannot_write():
    refused(NoThinking(text="zebra"), tokenizer=TOKENIZER, match=r"no_thinking\.text")


def test_a_forced_text_beyond_the_vocabulary():
    refused(
        NoThinking(text="h"), tokenizer=TOKENIZER, vocab_size=12,
        match=r"no_thinking\.text.*vocabulary's 12",
    )  # fmt: skip


@pytest.mark.parametrize("eos", [[13], [-1], [2, 99]])
def test_an_end_of_text_beyond_the_vocabulary(eos):
    refused(SOFT, eos=eos, match=r"eos_token_id: got \[.*vocabulary's 13")


def test_too_many_ends_of_text():
    refused(SOFT, eos=range(9), match="eos_token_id.*at most 8 tokens")


def test_forbidding_an_end_of_text_that_is_not_known():
    cold = SoftThinking(
        top_k=8, max_entries=8, cold_stop=ColdStop(), quirks={"abort_answer_on_low_entropy": True}
    )
    refused(cold, match="end-of-text token")


def test_a_model_that_does_not_think_still_has_a_trace():
    spec = DecodingSpec(trace=TraceConfig(level="full"))
    request = bind(spec, tokenizer=None, vocab_size=13)
    assert request.methods == {"trace"}


def test_noise_alone_cannot_even_be_written_down():
    with pytest.raises(ValueError, match="gumbel_noise alone"):
        DecodingSpec(methods=(GumbelNoise(),))


@pytest.mark.parametrize("slot", [-1, 1])
def test_a_slot_outside_the_table(slot):
    solo = Solo(SOFT)
    with pytest.raises(IndexError, match="allowed: 0 to 0"):
        solo.core.add(slot, solo.request, [])
