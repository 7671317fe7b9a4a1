"""Compiled forms of the step give the eager step's numbers, or are not used."""

import logging
import sys
from pathlib import Path

import pytest
import torch
from core_solo import EOS, MARKERS, START, Letters
from test_core_device import SPECS, VOCAB

from tokenlens.core import Core, bind
from tokenlens.core import compiled as module
from tokenlens.core.compiled import Forms, inductor
from tokenlens.core.swap import at, tensors_of
from tokenlens.methods import METHODS
from tokenlens.spec import parse_spec

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import launches

TOKENS = Letters("_ .<>abcdefgh".ljust(VOCAB, "?"))
COLD = SPECS[0]


def as_it_is(graph, inputs):
    """A compiler that runs the graph as it was traced."""
    return graph


def request_of(methods, seed=0, level="summary"):
    fields = {"phase": MARKERS.model_dump(), "seed": seed, "trace": {"level": level}}
    spec = parse_spec({"methods": methods, **fields})
    return bind(spec, methods=METHODS, tokenizer=TOKENS, vocab_size=VOCAB, eos_ids=[EOS])


def core_of(requests=(), forms=None, slots=6, **core):
    made = Core(methods=METHODS, max_slots=slots, **{"vocab_size": VOCAB, **core})
    made.forms = forms
    for slot, request in enumerate(requests):
        made.add(slot, request, [START])
    return made


# Every method of SPECS is live in one of these batches.
BATCHES = {
    "mixtures": [SPECS[i] for i in (0, 1, 2, 3, 4, 12, 17, 18)],
    "edits": [SPECS[i] for i in (5, 6, 8, 9, 10, 11)],
    "cuts": [SPECS[i] for i in (7, 16, 19)],
    "gates": [SPECS[i] for i in (13, 14, 15, 20)],
}


@pytest.mark.parametrize("name", BATCHES)
def test_a_traced_step_is_the_eager_step(name, monkeypatch, caplog):
    requests = [
        request_of(methods, seed, "full" if seed % 2 else "summary")
        for seed, methods in enumerate(BATCHES[name])
    ]
    # What is compared is exact: the graph runs the ops that were traced.
    monkeypatch.setattr(module, "TOLERANCE", 0.0)
    core = core_of(slots=len(requests), rewind_steps=2)
    with caplog.at_level(logging.WARNING):
        assert Forms(as_it_is).warm(core, requests, VOCAB + 3, torch.float32), caplog.text


def test_a_form_that_writes_a_history_is_the_eager_step(monkeypatch):
    monkeypatch.setattr(module, "TOLERANCE", 0.0)
    # Narrower than the core, and longer than what a trial copies of it.
    tables = [torch.zeros(40, 3), torch.zeros(40, 3, dtype=torch.int64)]
    core = core_of(slots=3, history=tuple(tables))
    with_history, without = Forms(as_it_is), Forms(as_it_is)
    assert with_history.warm(core, [request_of(COLD)], VOCAB, torch.float32)
    assert all(not table.any() for table in tables)

    def run(forms, history=True):
        tables = (torch.zeros(40, 3), torch.zeros(40, 3, dtype=torch.int64)) if history else None
        core = core_of([request_of(COLD, seed) for seed in range(3)], forms, history=tables)
        slots, generator = torch.arange(3), torch.Generator().manual_seed(3)
        for step in range(8):
            logits = torch.randn(3, VOCAB, generator=generator) * 4
            entries = torch.tensor([4 + step, 39, 20 + step]) if history else None
            core.commit(core.step(logits, slots).argmax(dim=1), slots, None, entries)
        return core

    monkeypatch.setattr(Core, "_commit", None)
    ours = run(with_history).next_input
    monkeypatch.undo()
    eager, by_slot = run(None).next_input, run(None, history=False).next_input
    for one, other in ((ours.weights, eager.weights), (ours.ids, eager.ids)):
        assert one[:39].equal(other[:39])
    assert eager.weights[11].equal(by_slot.weights[0, :3])
    assert eager.ids[27].equal(by_slot.ids[2, :3])
    # A form of the one is none of the other's.
    assert without.warm(core_of(slots=3), [request_of(COLD)], VOCAB, torch.float32)
    assert (
        without.of(core_of([request_of(COLD)], history=tuple(tables)), torch.zeros(1, VOCAB))
        is None
    )
    assert without.of(core_of([request_of(COLD)]), torch.zeros(1, VOCAB)) is not None


def test_every_spec_of_the_device_tests_is_in_a_batch():
    assert sorted(map(str, (one for batch in BATCHES.values() for one in batch))) == sorted(
        map(str, SPECS)
    )


def decode(core, num_rows, steps=12, seed=1, other_order=False):
    """Drive a core; returns all that it gave back."""
    generator = torch.Generator().manual_seed(seed)
    slots = torch.arange(num_rows)
    found = []
    for _ in range(steps):
        logits = torch.randn(num_rows, VOCAB, generator=generator) * 4
        advance = torch.rand(num_rows, generator=generator) < 0.9
        edited = core.step(logits, slots)
        sampled = edited.argmax(dim=1)
        order = torch.arange(num_rows).flip(0) if other_order else torch.arange(num_rows)
        taken = slots[order] if other_order else slots
        step = core.commit(sampled[order], taken, advance[order])
        found += [edited, *step, core.next_input.weights[:num_rows].clone()]
    return found


@pytest.fixture(scope="module")
def compiled():
    """The form of Cold Stop with noise, compiled by Inductor for this machine's CPU."""
    forms = Forms(inductor)
    assert forms.warm(core_of(), [request_of(COLD)], VOCAB, torch.float32)
    return forms


@pytest.mark.parametrize("other_order", [False, True])
@pytest.mark.parametrize("num_rows", [1, 2, 6])
def test_a_compiled_core_decides_as_the_eager_one(compiled, num_rows, other_order):
    requests = [request_of(COLD, seed) for seed in range(num_rows)]
    eager = decode(core_of(requests), num_rows, other_order=other_order)
    ours = decode(core_of(requests, compiled), num_rows, other_order=other_order)
    for one, other in zip(ours, eager, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_the_compiled_step_is_really_taken(compiled, monkeypatch):
    core = core_of([request_of(COLD)], compiled)
    monkeypatch.setattr(core, "_decide", None)
    monkeypatch.setattr(core, "_commit", None)
    decode(core, 1, steps=2)


def test_a_request_that_comes_or_goes_between_step_and_commit(compiled):
    def run(forms):
        core = core_of([request_of(COLD, seed) for seed in range(3)], forms)
        slots, logits = torch.arange(4), torch.randn(4, VOCAB) * 0 + torch.arange(VOCAB)
        edited = core.step(logits, slots)
        core.remove(1)
        core.add(3, request_of(COLD, 9), [START])
        core.commit(edited.argmax(dim=1), slots)
        state = core.table.ints, core.table.floats, *core.table.wide.values()
        return [table[:4].clone() for table in state]

    for one, other in zip(run(compiled), run(None), strict=True):
        assert one.equal(other)


def test_what_no_form_is_for_stays_eager(compiled):
    core = core_of([request_of(COLD)], compiled)
    logits = torch.zeros(1, VOCAB)
    assert compiled.of(core, logits) is not None
    assert compiled.of(core, torch.zeros(1, VOCAB + 1)) is None
    assert compiled.of(core, logits.half()) is None
    assert compiled.of(core, torch.zeros(1, VOCAB + 1)[:, :VOCAB]) is None
    core.add(1, request_of([{"method": "no_thinking"}]), [START])
    assert compiled.of(core, logits) is None


def test_a_form_that_looks_at_more_serves_who_uses_less(compiled):
    warm = [{**COLD[0], "cold_stop": None}, {"method": "gumbel_noise"}]
    core = core_of([request_of(warm)], compiled)
    # Without Cold Stop nothing is forced: another need, so another form.
    assert compiled.of(core, torch.zeros(1, VOCAB)) is None


def broken(graph, inputs):
    raise RuntimeError("no compiler here")


def wrong(graph, inputs):
    def run(*arguments):
        first, *rest = graph(*arguments)
        return (first + 1, *rest)

    return run


@pytest.mark.parametrize(("compiler", "said"), [(broken, "no compiler"), (wrong, "other numbers")])
def test_what_cannot_be_compiled_or_is_wrong_stays_eager_and_is_said_once(compiler, said, caplog):
    forms, core = Forms(compiler), core_of()
    with caplog.at_level(logging.WARNING):
        for methods in (COLD, [{"method": "no_thinking"}]):
            assert not forms.warm(core, [request_of(methods)], VOCAB, torch.float32)
    assert len(caplog.records) == 1
    assert said in caplog.text
    core.add(0, request_of(COLD), [START])
    assert forms.of(core, torch.zeros(1, VOCAB)) is None


def test_without_the_comparison_a_wrong_form_would_be_used(monkeypatch):
    monkeypatch.setattr(Forms, "_check", lambda *arguments: None)
    forms = Forms(wrong)
    assert forms.warm(core_of(), [request_of(COLD)], VOCAB, torch.float32)
    requests = [request_of(COLD)]
    assert not decode(core_of(requests, forms), 1)[0].equal(decode(core_of(requests), 1)[0])


def test_warming_leaves_a_core_as_it_was():
    core = core_of()
    before = [tensor.clone() for tensor in tensors_of(core).values()]
    Forms(as_it_is).warm(core, [request_of(COLD)], VOCAB, torch.float32)
    assert core.idle
    for path, tensor in zip(tensors_of(core), before, strict=True):
        assert at(core, path).equal(tensor), path


def rows_of_the_conformance_table():
    """Its rows, by the form that carries them out: what is live decides which ops run."""
    found = {}
    for name, methods in launches.compositions():
        if name.startswith("row "):
            request = launches.request_of(methods)
            core = core_of([request], vocab_size=launches.VOCAB, engine_vectors=launches.Vectors())
            found.setdefault(core.live_key, {})[name.removeprefix("row ")] = request
    return {next(iter(rows)): list(rows.values()) for rows in found.values()}


FORMS = rows_of_the_conformance_table()


@pytest.mark.parametrize("rows", FORMS)
def test_the_graphs_of_conformance_rows_are_the_eager_step(rows, monkeypatch, caplog):
    """To the bit: what a compiler is handed. What it makes of that, each start compares."""
    monkeypatch.setattr(module, "TOLERANCE", 0.0)
    monkeypatch.setattr(module, "ROWS", len(FORMS[rows]) + 1)
    core = core_of(slots=module.ROWS, vocab_size=launches.VOCAB, engine_vectors=launches.Vectors())
    with caplog.at_level(logging.WARNING):
        forms = Forms(as_it_is)
        assert forms.warm(core, FORMS[rows], launches.VOCAB, torch.float32), caplog.text
