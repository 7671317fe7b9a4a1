"""Several blocks of thinking, tool calls inside of one, several wordings, and no markers at all."""

import pytest
import torch
from built_in import Core, bind
from built_tokenizers import byte_level
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenlens import parse_spec

ADDED = ("<think>", "</think>", "<tool_call>", "<|go|>", "<|stop|>")
TOKENIZER = byte_level(added=ADDED)
SOFT = {"method": "soft_thinking"}


def written(text, phase="auto", *methods, prompt="q", tokenizer=TOKENIZER):
    """The phase and the mode of every token of a text that the model writes, one letter each."""
    spec = parse_spec({"methods": [SOFT, *methods], "phase": phase, "seed": 1})
    request = bind(spec, tokenizer=tokenizer, vocab_size=len(tokenizer))
    core = Core(max_slots=1, vocab_size=len(tokenizer))
    core.add(0, request, tokenizer.encode(prompt, add_special_tokens=False))
    slots, said = torch.tensor([0]), []
    for token in tokenizer.encode(text, add_special_tokens=False):
        logits = torch.zeros(1, len(tokenizer))
        logits[0, token] = 50.0
        sampled = core.step(logits, slots).argmax(dim=1)
        step = core.commit(sampled, slots)
        said.append("PTA"[int(step.phase[0])] + ("*" if step.latent[0] else ""))
    return said


def test_thinking_opens_again():
    assert written("<think>a</think>b<think>c</think>") == ["P", "T*", "T", "A", "A", "T*", "T"]


def test_a_tool_call_inside_of_thinking_is_discrete():
    assert written("<think>a<tool_call>bc") == ["P", "T*", "T", "A", "A"]
    # The guard switched off: the call is mixed.
    phase = {"think_start": "<think>", "think_end": "</think>", "tool_start": "z"}
    assert written("<think>a<tool_call>bc", phase)[2:] == ["T*", "T*", "T*"]


def test_several_wordings_of_a_start_and_of_an_end():
    phase = {"think_start": ["<|go|>", "<think>"], "think_end": ["</think>", "<|stop|>", "so:"]}
    for start in ("<|go|>", "<think>"):
        for end, tokens in (("</think>", 1), ("<|stop|>", 1), ("so:", 3)):
            said = written(f"{start}a{end}b", phase)
            assert said[0] == "P"
            assert said[-1] == "A"
            assert [one[0] for one in said[1:-1]] == ["T"] * (1 + tokens)


@pytest.mark.parametrize(("counted", "second"), [("whole", 0), ("block", 3)])
def test_a_budget_is_over_the_block_or_the_whole(counted, second):
    said = written(
        "<think>" + "a" * 6 + "<think>" + "a" * 6,
        {"counted": counted},
        {"method": "answer_now", "after": 3},
    )
    first, later = said[1:7], said[8:]
    assert first == ["T*", "T*", "T*", "T", "A", "A"]
    assert [one[0] for one in later] == ["T"] * (second + 1) + ["A"] * (5 - second)


@pytest.mark.parametrize("after", [0, 1, 3])
def test_thinking_without_markers_ends_after_so_many_tokens(after):
    said = written("abcdef", {"markers": "none", "end_after": after})
    assert said == ["T*"] * (after - 1) + ["T*"] * (after > 0) + ["A"] * (6 - after)
    said = written("abcdef", "none", {"method": "answer_now", "after": after})
    assert [one[0] for one in said] == ["T"] * after + ["A"] * (6 - after)


def test_thinking_without_markers_ends_at_a_text_and_never_opens_again():
    said = written("ab\nso: c<think>d", {"markers": "none", "think_end": "\nso:"})
    assert [one[0] for one in said] == ["T"] * 6 + ["A"] * 4


def test_thinking_without_markers_ends_on_a_condition():
    cold = {"entropy_threshold": 9.0, "patience": 3}
    spec = {**SOFT, "cold_stop": cold}
    made = parse_spec({"methods": [spec], "phase": "none"})
    request = bind(made, tokenizer=TOKENIZER, vocab_size=len(TOKENIZER))
    assert request.end_markers == ()
    core, slots = Core(max_slots=1, vocab_size=len(TOKENIZER)), torch.tensor([0])
    core.add(0, request, [1])
    phases, tokens = [], []
    for _ in range(6):
        logits = torch.zeros(1, len(TOKENIZER))
        logits[0, 7] = 50.0
        step = core.commit(core.step(logits, slots).argmax(dim=1), slots)
        phases.append(int(step.phase[0]))
        tokens.append(int(step.token[0]))
    assert phases == [1, 1, 2, 2, 2, 2]
    assert tokens == [7] * 6  # nothing was written for it


def test_rows_with_markers_beside_rows_without():
    core = Core(max_slots=2, vocab_size=len(TOKENIZER))
    for slot, phase in enumerate(("none", "auto")):
        spec = parse_spec({"methods": [SOFT, {"method": "answer_now", "after": 2}], "phase": phase})
        request = bind(spec, tokenizer=TOKENIZER, vocab_size=len(TOKENIZER))
        core.add(slot, request, TOKENIZER.encode("q<think>", add_special_tokens=False))
    slots, seen = torch.tensor([0, 1]), []
    for _ in range(4):
        logits = torch.zeros(2, len(TOKENIZER))
        logits[:, 7] = 50.0
        step = core.commit(core.step(logits, slots).argmax(dim=1), slots)
        seen.append(step.token.tolist())
    end = TOKENIZER.convert_tokens_to_ids("</think>")
    assert seen == [[7, 7], [7, 7], [7, end], [7, 7]]


ONCE = {"reopens": False}


def test_thinking_that_does_not_open_again():
    text = "<think>a</think>b<think>c</think>d<tool_call>e"
    assert written(text, ONCE) == ["P", "T*", "T", *"AAAAAAA"]
    assert "T*" in written(text)[4:]


def test_what_stands_behind_the_end_is_not_forced():
    ended = {"method": "answer_now", "after": 1, "text": "</think>xy"}
    for phase, forced in ((ONCE, False), ("auto", True)):
        spec = parse_spec({"methods": [ended], "phase": phase, "seed": 1})
        request = bind(spec, tokenizer=TOKENIZER, vocab_size=len(TOKENIZER))
        core = Core(max_slots=1, vocab_size=len(TOKENIZER))
        core.add(0, request, TOKENIZER.encode("q<think>", add_special_tokens=False))
        slots, ids = torch.tensor([0]), []
        for token in TOKENIZER.encode("aaaa", add_special_tokens=False):
            logits = torch.zeros(1, len(TOKENIZER))
            logits[0, token] = 50.0
            ids.append(int(core.step(logits, slots).argmax(dim=1)))
            core.commit(torch.tensor(ids[-1:]), slots)
        assert TOKENIZER.decode(ids) == ("a</think>xy" if forced else "a</think>aa")


ACTING = [
    [{"method": "s1", "max_thinking": 4, "answer_prefix": "=1"}],
    [SOFT, {"method": "answer_now", "after": 2, "text": "</think>xyz"}],
    [{"method": "thinking_budget", "budget": 3}],
    [{"method": "no_thinking", "text": "so</think>it"}],
]


@given(
    st.sampled_from(ACTING),
    st.lists(st.sampled_from([*"ab\n", "<think>", "</think>", "<tool_call>"]), max_size=24),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_nothing_is_forced_in_an_answer_that_stays_one(methods, pieces, opened):
    spec = parse_spec({"methods": methods, "phase": ONCE, "seed": 1})
    request = bind(spec, tokenizer=TOKENIZER, vocab_size=len(TOKENIZER))
    core = Core(max_slots=1, vocab_size=len(TOKENIZER))
    prompt = "q<think>" if opened else "q"
    core.add(0, request, TOKENIZER.encode(prompt, add_special_tokens=False))
    slots, phases = torch.tensor([0]), []
    for token in TOKENIZER.encode("".join(pieces), add_special_tokens=False):
        logits = torch.zeros(1, len(TOKENIZER))
        logits[0, token] = 50.0
        sampled = core.step(logits, slots).argmax(dim=1)
        step = core.commit(sampled, slots)
        phases.append(int(step.phase[0]))
        if phases[-1] == 2:
            assert not step.forced[0]
            assert int(sampled) == token
    assert phases == sorted(phases)
