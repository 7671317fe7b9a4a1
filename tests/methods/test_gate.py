"""The gate as a step function: ties, bounds, windows, the cap; and what holds of every script."""

import math
from typing import Literal

import pytest
import torch
from built_in import Core, bind
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tokenlens import DecodingSpec
from tokenlens.core import Phase
from tokenlens.core.columns import PHASE
from tokenlens.methods._shared.gate.rule import GateRules, GateState, gate_step
from tokenlens.methods._shared.gate.step import GATE, NEVER, SWITCHES
from tokenlens.methods.soft_thinking.config import ConceptTokens, SoftThinking
from tokenlens.spec import (
    Blend,
    Gate,
    Lead,
    PhaseConfig,
    Selar,
    SpecError,
    SwiReasoning,
    SwitchControl,
    ThinkRouter,
    parse_spec,
)
from tokenlens.spec.registry import members


def one(value, dtype):
    return torch.tensor([value], dtype=dtype)


def rules(**given):
    values = {
        "enter": -math.inf, "leave": math.inf, "enter_at_bound": True, "trend": False,
        "first_latent": False, "dwell_latent": 0, "dwell_discrete": 0, "max_switches": NEVER,
        **given,
    }  # fmt: skip
    kinds = {bool: torch.bool, int: torch.int64, float: torch.float32}
    return GateRules(**{name: one(value, kinds[type(value)]) for name, value in values.items()})


def fresh():
    no, zero = one(False, torch.bool), one(0, torch.int64)
    return GateState(no, no, one(0.0, torch.float32), zero, zero)


def follow(script, rule, may_enter=True):
    """Modes of a script, and the last state."""
    state, modes = fresh(), []
    for value in script:
        decision = gate_step(one(value, torch.float32), state, rule, may_enter)
        state = decision.state
        modes.append(bool(state.latent[0]))
    return modes, state


def test_a_threshold_without_memory():
    rule = rules(enter=0.5, leave=0.5)
    assert follow([0.4, 0.5, 0.6, 0.5, 0.499], rule)[0] == [False, True, True, True, False]


def test_the_bound_itself_may_stay_discrete():
    rule = rules(enter=0.5, leave=0.5, enter_at_bound=False)
    # Once latent, a signal at the bound does not leave: leaving is strict.
    assert follow([0.5, 0.6, 0.5], rule)[0] == [False, True, True]


def test_hysteresis_keeps_what_lies_between():
    rule = rules(enter=0.8, leave=0.2)
    script = [0.5, 0.8, 0.5, 0.2, 0.19, 0.5, 0.79, 0.8]
    assert follow(script, rule)[0] == [False, True, True, True, False, False, False, True]


def test_the_trend_is_strict_and_of_the_last_switch():
    rule = rules(trend=True, first_latent=True)
    # 2.0 is the first reference; a tie stays; 1.9 leaves and becomes the reference; a tie stays;
    # 1.95 enters and becomes the reference.
    script = [2.0, 2.0, 2.5, 1.9, 1.9, 1.95, 1.95, 1.0]
    assert follow(script, rule)[0] == [True, True, True, False, False, True, True, False]


def test_windows_count_steps_since_the_switch():
    rule = rules(trend=True, first_latent=True, dwell_discrete=2)
    modes, state = follow([2.0, 1.0, 3.0, 3.0, 3.0], rule)
    # The switch is at step 1; step 2 has stayed one step, step 3 two.
    assert modes == [True, False, False, True, True]
    assert int(state.switches[0]) == 1
    rule = rules(trend=True, first_latent=True, dwell_latent=3)
    assert follow([2.0, 1.0, 1.0, 1.0], rule)[0] == [True, True, True, False]


@pytest.mark.parametrize(("cap", "switches"), [(1, 1), (2, 2), (NEVER, 4)])
def test_the_cap(cap, switches):
    rule = rules(enter=0.5, leave=0.5, max_switches=cap)
    modes, state = follow([1, 0, 1, 0, 1, 0, 1, 0], rule)
    assert int(state.switches[0]) == switches
    assert modes[2 * switches :] == [False] * (8 - 2 * switches)


def test_the_first_step_is_no_switch():
    modes, state = follow([0.0], rules(enter=0.5, leave=0.5, first_latent=True))
    assert modes == [True]
    assert (int(state.switches[0]), int(state.stay[0])) == (0, 0)


def test_a_nan_goes_nowhere():
    rule = rules(enter=0.5, leave=0.5)
    assert follow([1.0, math.nan, 0.0, math.nan, 1.0], rule)[0] == [True, True, False, False, True]


def test_who_may_not_enter_can_still_leave():
    rule = rules(enter=0.5, leave=0.5, first_latent=True)
    state = gate_step(one(1.0, torch.float32), fresh(), rule).state
    left = gate_step(one(0.0, torch.float32), state, rule, one(False, torch.bool)).state
    assert not left.latent[0]
    again = gate_step(one(1.0, torch.float32), left, rule, one(False, torch.bool)).state
    assert not again.latent[0]


# The same examples every time, however long they take: what decides whether a change lands must not
# depend on chance or on the machine.
STEADY = settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


@settings(STEADY, max_examples=200)
@given(
    script=st.lists(st.sampled_from([0.0, 0.2, 0.5, 0.5000001, 0.8, 1.0]), max_size=40),
    enter=st.sampled_from([0.2, 0.5, 0.8]),
    gap=st.sampled_from([0.0, 0.3]),
    trend=st.booleans(),
    first=st.booleans(),
    dwell=st.integers(0, 4),
    cap=st.integers(1, 4),
)
def test_no_script_goes_beyond_the_cap_or_the_windows(script, enter, gap, trend, first, dwell, cap):
    rule = rules(
        enter=enter, leave=enter - gap, trend=trend, first_latent=first,
        dwell_latent=dwell, dwell_discrete=dwell, max_switches=cap,
    )  # fmt: skip
    modes, state = follow(script, rule)
    borders = [i for i in range(1, len(modes)) if modes[i] != modes[i - 1]]
    leaves = sum(modes[i - 1] for i in borders)
    assert leaves == int(state.switches[0]) <= cap
    for i, j in zip([0, *borders], borders):
        assert j - i >= dwell


START, END, EOS, TEXT = 8, 9, 11, (5, 6, 5)
VOCAB = 12


class Letters:
    """Writes ``a`` as the three tokens of the injected text."""

    def encode(self, text, *, add_special_tokens=True):
        return {"a": list(TEXT), "b": [7, END]}[text]

    def decode(self, ids, **_):
        return {TEXT: "a", (7, END): "b"}.get(tuple(ids), "?")


GATES = {
    "lead": Lead(gate=Gate(of="raw", trend=True, first="latent", max_switches=3)),
    "swi_reasoning": SwiReasoning(
        gate=Gate(of="raw", trend=True, first="latent", dwell_discrete=2),
        first=Blend(tokens=(3,), keep=0.9),
        budget=20,
        switch_control=SwitchControl(after=1, converge="a", terminate="b", answer_tokens=4),
    ),
    "selar": Selar(gate=Gate(of="topk", unit="fraction", enter=0.8), top_k=VOCAB),
    "think_router": ThinkRouter(
        gate=Gate(signal="max_probability", enter=0.4, max_switches=2), top_k=VOCAB, max_entries=4
    ),
}


@settings(STEADY, max_examples=60)
@given(
    name=st.sampled_from(sorted(GATES)),
    script=st.lists(
        st.tuples(
            st.sampled_from([0, 1, 2, 3, 4, START, END]),
            st.sampled_from([0.0, 0.7, 1.5, 3.0, 6.0]),
            st.integers(0, 4),
        ),
        min_size=5,
        max_size=40,
    ),
)
def test_whatever_the_model_says(name, script):
    """The cap holds, nothing is latent after thinking, an injected text comes whole and once."""
    config = GATES[name]
    phase = PhaseConfig(think_start=(START,), think_end=(END,))
    spec = DecodingSpec(methods=(config,), phase=phase)
    core = Core(max_slots=1, vocab_size=VOCAB)
    core.add(0, bind(spec, tokenizer=Letters(), vocab_size=VOCAB, eos_ids=(EOS,)), [START])
    slots = torch.tensor([0])
    tokens, forced, latent, switches = [], [], [], [0]
    for token, height, other in script:
        logits = torch.zeros(1, VOCAB)
        logits[0, token] = height
        edited = core.step(logits, slots)
        # The engine samples something else than the top token where it may.
        top = int(edited.argmax())
        sampled = top if float(edited[0, top]) > 1e5 else other
        step = core.commit(torch.tensor([sampled]), slots)
        thinking = int(core.table.column(PHASE)[0]) == Phase.THINKING
        assert not (bool(step.latent[0]) and not thinking)
        if bool(step.advanced[0]):
            tokens.append(sampled)
            forced.append(bool(step.forced[0]) and top == sampled)
            latent.append(bool(step.latent[0]))
            switches.append(int(core.table.column(SWITCHES)[0]))
    cap = config.gate.max_switches
    if cap is not None:
        assert switches[-1] <= cap
    if name == "swi_reasoning":
        control = config.switch_control
        assert switches[-1] <= 2 * control.after + 1
        runs, run = [], []
        for token, by_us in zip([*tokens, None], [*forced, False]):
            if by_us:
                run.append(token)
            elif run:
                runs.append(run)
                run = []
        # A run is whole texts, one after another; the last may be cut by the script's end.
        injected = []
        for number, run in enumerate(runs, 1):
            while run:
                text = next(
                    (text for text in (list(TEXT), [7, END], [EOS]) if run[: len(text)] == text),
                    None,
                )
                assert text is not None or (number == len(runs) and forced[-1])
                injected.append(text)
                run = run[len(text) :] if text else []
        assert injected.count([7, END]) <= 1


WRONG = {
    "two gates": [{"method": "lead"}, {"method": "selar"}],
    "a gate and a gate by chance": [{"method": "lead"}, {"method": "random_route"}],
    "a gate alone on noise": [
        {"method": "soft_thinking"}, {"method": "gumbel_noise"}, {"method": "soft_grpo_noise"},
    ],
    "noise on a full mixture": [
        {"method": "lead", "mixture": "full"}, {"method": "gumbel_noise"},
    ],
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_compose_is_refused(case):
    with pytest.raises(SpecError, match="methods"):
        parse_spec({"methods": WRONG[case]})


@pytest.mark.parametrize(
    "other",
    [
        {"method": "gumbel_noise"},
        {"method": "soft_grpo_noise"},
        {"method": "top1"},
        {"method": "answer_now", "after": 5},
        {"method": "cyclic_reflex"},
    ],
)
def test_what_composes(other):
    # The whole vocabulary's mixture has no entries for noise to change.
    whole = {"latent_fusion"} if other["method"].endswith("_noise") else set()
    for gate in members("gate"):
        methods = {"methods": [{"method": gate}, other]}
        if gate in whole:
            with pytest.raises(SpecError, match="no entries for it to change"):
                parse_spec(methods)
        else:
            parse_spec(methods)


class Words(Letters):
    """Knows the line break and the two characters backslash and n as a token each."""

    def encode(self, text, *, add_special_tokens=True):
        return {"\n": [3], "\\n": [4]}.get(text, [0, 0])

    def decode(self, ids, **_):
        return {(3,): "\n", (4,): "\\n"}.get(tuple(ids), "?")


def of_gate(config, tokenizer, script):
    """Tokens, whether each is fed as a mixture, and the first one's weights by token."""
    spec = DecodingSpec(
        methods=(config,), phase=PhaseConfig(think_start=(START,), think_end=(END,))
    )
    core = Core(max_slots=1, vocab_size=VOCAB)
    core.add(0, bind(spec, tokenizer=tokenizer, vocab_size=VOCAB, eos_ids=(EOS,)), [START])
    slots, tokens, latent, first = torch.tensor([0]), [], [], None
    for height in script:
        logits = torch.zeros(1, VOCAB)
        logits[0, 1] = height
        sampled = core.step(logits, slots).argmax(1)
        step = core.commit(sampled, slots)
        tokens.append(int(sampled))
        latent.append(bool(step.latent[0]))
        if first is None:
            first = torch.zeros(VOCAB).index_add(0, step.ids[0], step.weights[0]).tolist()
    return tokens, latent, first


@pytest.mark.parametrize(("profile", "locks"), [("published", False), ("default", True)])
def test_an_injected_end_locks_unless_published(profile, locks):
    """In the authors' code only an end of thinking that the model wrote keeps mixtures out."""
    config = SwiReasoning.model_validate(
        {
            "profile": profile, "mixture": "top_k", "budget": 20,
            "gate": Gate(of="raw", trend=True, first="latent", dwell_discrete=1),
            "first": None, "enter": None, "leave": None,
            "quirks": {"start": "first_token", "goes_on_in_answer": True},
            "switch_control": SwitchControl(after=1, terminate="b", answer_tokens=9),
        }
    )  # fmt: skip
    assert config.rules.injected_end_locks is locks
    # The entropy falls: discrete, and the end is injected. Then it rises again.
    tokens, latent, _ = of_gate(config, Letters(), [1.0, 6.0, 6.0, 0.5, 0.5, 0.5])
    assert tokens[2] == END
    assert latent[0]
    assert not any(latent[1:3])
    assert any(latent[3:]) is not locks
    # The flag alone makes the difference.
    other = config.model_copy(
        update={"quirks": config.rules.model_copy(update={"injected_end_locks": not locks})}
    )
    assert any(of_gate(other, Letters(), [1.0, 6.0, 6.0, 0.5, 0.5, 0.5])[1][3:]) is locks


@pytest.mark.parametrize(("profile", "anchor", "other"), [("published", 4, 3), ("default", 3, 4)])
def test_the_first_blend_is_a_line_break_and_published_its_two_characters(profile, anchor, other):
    config = SwiReasoning.model_validate(
        {
            "profile": profile, "mixture": "top_k", "switch_control": None,
            "gate": Gate(of="raw", trend=True, first="latent"),
            "enter": None, "leave": None,
        }
    )  # fmt: skip
    # A mixture of nearly nothing but token 1.
    _, latent, first = of_gate(config, Words(), [30.0])
    assert latent == [True]
    assert first[anchor] == pytest.approx(0.1)
    assert first[1] == pytest.approx(0.9)
    assert first[other] == pytest.approx(0.0, abs=1e-6)


def test_a_config_of_any_name_with_a_gate_is_served_by_the_gate():
    class Mine(ConceptTokens):
        method: Literal["mine"] = "mine"
        gate: Gate = Gate(enter=0.3)

    assert GATE.serves(Mine())
    assert not GATE.serves(SoftThinking())
