"""Full traces say what each method did to the logits, and when a gate switched."""

import pytest
import torch
from built_in import Core, bind
from core_solo import EOS, MARKERS, START, Letters

from tokenlens.core.recorder import Recorder, edits_and_switch
from tokenlens.core.rows import Rows
from tokenlens.methods import METHODS
from tokenlens.methods._shared.truncation import TruncationMethod
from tokenlens.spec import parse_spec

VOCAB = 40
TOKENIZER = Letters("_ .<>abcdefgh".ljust(VOCAB, "?"))
STEPS, END = 12, MARKERS.think_end[0]


def decode(*specs, level="full", steps=STEPS, seed=0):
    """Traces of one request a spec, the logits that went in, and those that came out."""
    requests = [
        bind(
            parse_spec(
                {"methods": methods, "phase": MARKERS.model_dump(), "trace": {"level": level}}
            ),
            tokenizer=TOKENIZER,
            vocab_size=VOCAB,
            eos_ids=[EOS],
        )
        for methods in specs
    ]
    core = Core(max_slots=len(specs), vocab_size=VOCAB)
    for slot, request in enumerate(requests):
        core.add(slot, request, [7, START])
    made, slots = Recorder(core, requests, "test"), torch.arange(len(specs))
    generator = torch.Generator().manual_seed(seed)
    before, after = [], []
    for _ in range(steps):
        logits = torch.randn(1, VOCAB, generator=generator).repeat(len(specs), 1) * 2
        logits[:, [END, EOS]] = -20.0
        edited = core.step(logits, slots)
        made.append(core.commit(edited.argmax(1), slots))
        before.append(logits)
        after.append(edited)
    return made.traces(), torch.stack(before), torch.stack(after), core


WORDS = {"words": ["a"], "quirks": {"forms": "bare"}}
BIASES = {
    "cyclic_reflex": {"period": 7.0, "amplitude": 3.0, **WORDS},
    "static_window": {"windows": [[2, 5]], "amplitude": -2.0, **WORDS},
    "tip": {"duration": 4, "words": ["a"], "forms": "bare"},
    "nowait": {"words": ["a"]},
    "thinking_budget": {"budget": 10, "ramp": 0.5},
}


@pytest.mark.parametrize("name", BIASES)
def test_a_bias_is_what_was_added(name):
    (trace,), before, after, _ = decode([{"method": name, **BIASES[name]}])
    acted = 0
    for step, old, new in zip(trace.steps, before[:, 0], after[:, 0]):
        changed = new != old
        if step.forced:
            continue
        if step.edits is None:
            assert not changed.any()
            continue
        assert list(step.edits) == [name]
        assert changed.sum() == 1
        assert (new - old)[changed].item() == pytest.approx(step.edits[name], rel=1e-5)
        acted += 1
    assert acted > 2


TRUNCATIONS = [one.name for one in METHODS if isinstance(one, TruncationMethod)]


@pytest.mark.parametrize("name", TRUNCATIONS)
def test_a_truncation_says_how_many_tokens_it_kept(name):
    (trace,), _, after, _ = decode([{"method": name}])
    for step, new in zip(trace.steps, after[:, 0]):
        assert step.edits == {name: float(new.isfinite().sum())}


@pytest.mark.parametrize(
    "config",
    [
        {"method": "edt", "engine_temperature": 0.5},
        {"method": "hapo", "median": 0.1, "std": 0.5, "scale_pos": 0.3, "scale_neg": -0.3},
    ],
)
def test_an_adaptive_temperature_is_the_one_that_was_divided_by(config):
    (trace,), before, after, _ = decode([config])
    for step, old, new in zip(trace.steps, before[:, 0], after[:, 0]):
        temperature = (old / new).mean().item() * config.get("engine_temperature", 1.0)
        assert step.edits == {config["method"]: pytest.approx(temperature, rel=1e-4)}
    assert len({step.edits[config["method"]] for step in trace.steps}) > 3


def test_bans_are_said_where_they_are():
    s1 = {"method": "s1", "text": "a", "temperature": 0.5}
    slow = {"average_thinking": 3, "text": "a", "words": ["a"], "step_ends": ["b"]}
    soft = {"method": "soft_thinking", "eos_while_latent": "forbid", "top_k": 8, "max_entries": 8}
    traces, before, after, _ = decode([s1], [{"method": "alpha_one", **slow}], [soft])
    for name, row, trace in zip(("s1", "alpha_one", "soft_thinking"), range(3), traces):
        said_so = [step.edits == {name: -1e10} for step in trace.steps]
        lowered = (after[:, row] < before[:, row] - 1e8).any(dim=1).tolist()
        assert said_so == lowered
        assert any(said_so)


def test_a_gate_s_switches_are_its_changes_of_mode():
    gated = {"method": "think_router", "gate": {"enter": 0.6}}
    (trace,), *_ = decode([gated], steps=40)
    mode = trace.steps[0].latent
    for step in trace.steps:
        if step.switch is not None:
            assert mode == (step.switch == "to_discrete")
            mode = not mode
        assert step.latent == mode
    left = sum(step.switch == "to_discrete" for step in trace.steps)
    entered = sum(step.switch == "to_latent" for step in trace.steps)
    assert left == trace.counts.gate_switches > 2
    assert entered > 2


def test_rows_speak_for_themselves_alone():
    reflex, plain = [{"method": "cyclic_reflex", **BIASES["cyclic_reflex"]}], []
    gate = [{"method": "think_router", "gate": {"enter": 0.6}}]
    together, *_ = decode(reflex, plain, gate)
    for methods, trace in zip((reflex, plain, gate), together):
        (alone,), *_ = decode(methods)
        assert trace.steps == alone.steps
    assert all(step.edits is None and step.switch is None for step in together[1].steps)


def test_a_slot_s_last_request_says_nothing_of_its_next():
    traces, _, _, core = decode([{"method": "min_p"}], [{"method": "min_p"}], steps=3)
    assert traces[0].steps[0].edits
    request = bind(
        parse_spec({"methods": [], "phase": MARKERS.model_dump(), "trace": {"level": "full"}}),
        tokenizer=None, vocab_size=VOCAB, eos_ids=[EOS],
    )  # fmt: skip
    core.add(0, request, [7, START])
    slots = torch.tensor([0, 1])
    core.step(torch.randn(2, VOCAB, generator=torch.Generator().manual_seed(0)), slots)
    # In another order: kept by slot.
    notes = core.commit(torch.tensor([9, 9]), torch.tensor([1, 0])).records.tolist()
    assert edits_and_switch(notes[0], core.records)[0] is not None
    assert edits_and_switch(notes[1], core.records) == (None, None)


@pytest.mark.parametrize("level", ["off", "summary"])
def test_without_a_full_trace_nothing_is_recorded(level, monkeypatch):
    monkeypatch.setattr("tokenlens.core.rows.Rows.stacked_records", pytest.fail)
    seen = []
    original = Rows.record
    monkeypatch.setattr(
        Rows, "record", lambda *args: (original(*args), seen.append(args[0].records))[0]
    )
    specs = [[{"method": name, **BIASES[name]}] for name in BIASES]
    _, _, _, core = decode(*specs, level=level)
    assert seen
    assert not any(seen)
    core.step(torch.zeros(1, VOCAB), torch.tensor([0]))
    assert core._pending.decision().intent.records is None


def test_edits_and_switch():
    records = dict.fromkeys(Core(max_slots=1, vocab_size=4).records, 0.0)
    assert edits_and_switch(list(records.values()), records) == (None, None)
    assert edits_and_switch(list((records | {"tip": -3.0, "switch": -1.0}).values()), records) == (
        {"tip": -3.0},
        "to_discrete",
    )
    assert edits_and_switch(list((records | {"switch": 1.0}).values()), records) == (
        None,
        "to_latent",
    )
