"""A recorder keeps what the spec asked for, and says how much it did not keep."""

import pytest
import torch
from built_in import Core, bind
from core_solo import EOS, MARKERS, START, Solo, peaked

from tokenlens import DecodingSpec
from tokenlens.core import recorder
from tokenlens.core.recorder import Recorder
from tokenlens.spec import GumbelNoise, NoThinking, SoftThinking, TraceConfig
from tokenlens.trace import SCHEMA_VERSION, Trace

SOFT = SoftThinking(top_k=8, max_entries=8)


def recorded(steps, *levels, methods=(SOFT,), rows=None, advance=None):
    """Traces of one request for each level, after some steps of the same logits."""
    requests = [
        bind(
            DecodingSpec(methods=methods, phase=MARKERS, trace=level),
            tokenizer=None,
            vocab_size=13,
            eos_ids=(EOS,),
        )
        for level in levels
    ]
    core = Core(max_slots=len(requests), vocab_size=13)
    for slot, request in enumerate(requests):
        core.add(slot, request, [7, START])
    made = Recorder(core, requests, "test")
    slots = torch.arange(len(requests))
    for step in range(steps):
        row = rows[step] if rows else peaked(9, 2.0)
        edited = core.step(row.expand(len(requests), -1).contiguous(), slots)
        mask = None if advance is None else torch.tensor(advance[step])
        made.append(core.commit(edited.argmax(1), slots, mask))
    return made.traces()


def full(**settings):
    return TraceConfig(level="full", **settings)


def test_the_levels():
    off, summary, everything = recorded(3, TraceConfig(level="off"), TraceConfig(), full())
    assert off is None
    assert (summary.counts.tokens, summary.steps, summary.dropped_steps) == (3, (), 0)
    assert len(everything.steps) == 3
    assert everything.counts == summary.counts


def test_what_a_step_says():
    (trace,) = recorded(2, full())
    first, second = trace.steps
    assert (first.position, second.position) == (2, 3)
    assert (first.phase, first.token, first.latent, first.forced, first.valid) == (
        "thinking", 9, True, True, True,
    )  # fmt: skip
    assert first.entries[0][0] == 9
    assert sum(weight for _, weight in first.entries) == pytest.approx(1.0)
    assert first.entropy > 0
    assert 0 < first.max_probability < 1


def test_the_totals():
    rows = [peaked(9, 2.0), torch.full((13,), torch.nan), peaked(4), peaked(9), peaked(EOS)]
    (trace,) = recorded(5, TraceConfig(), rows=rows)
    counts = trace.counts
    # A row of NaNs has its arg-max at 0: an ordinary token here.
    assert (counts.tokens, counts.thinking_tokens, counts.latent_steps) == (5, 3, 1)
    assert (counts.forced_steps, counts.invalid_steps, counts.cold_stops) == (2, 1, 0)
    assert trace.final_phase == "answer"


def test_a_cold_stop_is_counted():
    cold = SOFT.model_validate(
        {**SOFT.model_dump(), "cold_stop": {"entropy_threshold": 1.0, "patience": 2}}
    )
    (trace,) = recorded(3, full(), methods=(cold,), rows=[peaked(9, 30.0)] * 3)
    assert trace.counts.cold_stops == 1
    assert [step.token for step in trace.steps] == [9, 4, 9]
    assert [step.phase for step in trace.steps] == ["thinking", "thinking", "answer"]


def test_steps_beyond_the_limit_are_counted_and_not_kept():
    short, long = recorded(7, full(max_steps=3), full(max_steps=5))
    assert [len(trace.steps) for trace in (short, long)] == [3, 5]
    assert [trace.dropped_steps for trace in (short, long)] == [4, 2]
    assert [step.position for step in short.steps] == [2, 3, 4]


def test_a_request_that_stays_within_the_limit_drops_nothing():
    (trace,) = recorded(3, full(max_steps=3))
    assert (len(trace.steps), trace.dropped_steps) == (3, 0)


def test_memory_is_bounded_by_the_longest_limit():
    requests = [bind(DecodingSpec(methods=(SOFT,), phase=MARKERS, trace=full(max_steps=4)),
                     tokenizer=None, vocab_size=13)]  # fmt: skip
    core = Core(max_slots=1, vocab_size=13)
    core.add(0, requests[0], [START])
    made = Recorder(core, requests, "test")
    slots = torch.tensor([0])
    for _ in range(9):
        made.append(core.commit(core.step(peaked(9)[None], slots).argmax(1), slots))
    assert len(made._steps) == 4


def test_steps_that_were_not_committed_are_not_shown():
    advance = [[True], [False], [True]]
    (trace,) = recorded(3, full(), advance=advance)
    assert [step.position for step in trace.steps] == [2, 3]
    assert trace.dropped_steps == 0


def test_every_committed_step_is_kept_or_counted():
    advance = [[True], [False], [False], [True], [True]]
    (trace,) = recorded(5, full(max_steps=3), advance=advance)
    assert len(trace.steps) + trace.dropped_steps == trace.counts.tokens == 3


@pytest.mark.parametrize("entries", [1, 2, 8])
def test_entries_are_cut(entries):
    (trace,) = recorded(2, full(max_entries=entries), rows=[torch.zeros(13)] * 2)
    assert {len(step.entries) for step in trace.steps} == {entries}


def test_each_request_has_its_own_cut():
    few, many = recorded(1, full(max_entries=2), full(max_entries=5), rows=[torch.zeros(13)])
    assert (len(few.steps[0].entries), len(many.steps[0].entries)) == (2, 5)


def test_a_recording_longer_than_a_chunk(monkeypatch):
    whole = recorded(7, full())
    monkeypatch.setattr(recorder, "CHUNK", 3)
    assert recorded(7, full()) == whole


def test_after_the_end_of_text_nothing_is_recorded():
    (trace,) = recorded(4, full(), rows=[peaked(9), peaked(EOS), peaked(9), peaked(9)])
    assert [step.token for step in trace.steps] == [9, EOS]
    assert trace.counts.tokens == 2


def test_a_plain_request_can_be_traced_without_changing_it():
    row = torch.linspace(0, 1, 13)
    solo = Solo(trace=full())
    assert torch.equal(solo.step(row), row)
    record = solo.commit()
    assert not record.latent
    assert not record.forced
    assert float(record.entropy) == pytest.approx(
        float(-(row.softmax(0) * row.log_softmax(0)).sum()), abs=1e-5
    )


def test_a_trace_of_the_answer_shows_the_models_own_distribution():
    row = torch.linspace(0, 1, 13)
    for noise in ((), (GumbelNoise(),)):
        solo = Solo(SOFT, *noise, prompt=(START, 4), trace=full(), seed=3)
        record = solo.run(row, 9)
        torch.testing.assert_close(record.weights, row.softmax(0).flip(0))


def test_without_a_trace_the_answer_is_not_looked_at():
    record = Solo(SOFT, prompt=(START, 4)).run(peaked(9), 9)
    assert float(record.entropy) == 0


def test_a_forced_step_is_marked():
    (trace,) = recorded(2, full(), methods=(NoThinking(),))
    assert [(step.forced, step.latent) for step in trace.steps] == [(True, False), (False, False)]


def test_a_trace_survives_json():
    (trace,) = recorded(2, full())
    assert Trace.model_validate_json(trace.model_dump_json()) == trace
    assert trace.schema_version == SCHEMA_VERSION
