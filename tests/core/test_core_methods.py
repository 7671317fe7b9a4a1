"""Methods are handed to the core, which knows none by name: what they declare is held to."""

from typing import ClassVar

import pytest
import torch

from tokenlens.core import Core, bind
from tokenlens.core.columns import Field, Phase
from tokenlens.core.forcing import start_forcing
from tokenlens.core.method import Method
from tokenlens.core.recorder import Recorder
from tokenlens.methods import METHODS
from tokenlens.spec import Top1, parse_spec

START, END, VOCAB = 3, 4, 40
SPEC = {
    "methods": [{"method": "soft_thinking"}, {"method": "top1"}],
    "phase": {"think_start": [START], "think_end": [END]},
}
SEEN = Field("counting.seen", "int")


class Counting(Method):
    """A method from outside, beside the library's: counts what a request with top1 commits."""

    counters: ClassVar = {"seen": SEEN}

    def serves(self, config):
        return isinstance(config, Top1)

    def commit(self, rows, before, sampled):
        rows.add(SEEN, rows[self.on] & (before == Phase.THINKING))


def decoded(methods, steps=3):
    request = bind(parse_spec(SPEC), methods=methods, tokenizer=None, vocab_size=VOCAB)
    core = Core(methods=methods, max_slots=1, vocab_size=VOCAB)
    core.add(0, request, [START])
    recorder, slots = Recorder(core, [request], "hf"), torch.arange(1)
    for step in range(steps):
        logits = torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(step))
        logits[0, END] = -50.0
        recorder.append(core.commit(core.step(logits, slots).argmax(1), slots))
    return recorder.traces()[0]


def test_what_a_method_from_outside_counts_is_in_the_trace():
    found = decoded((*METHODS, Counting("counting", SEEN)))
    assert found.counts.others == {"seen": 3}
    assert found.counts.tokens == 3
    assert decoded(METHODS).counts.others == {}


@pytest.mark.parametrize(
    ("counters", "fields", "words"),
    [
        ({"tokens": SEEN}, (SEEN,), "'tokens'"),
        ({"cold_stops": SEEN}, (SEEN,), "'cold_stops'"),
        ({"mode_changes": SEEN}, (SEEN,), "'mode_changes'"),
        ({"others": SEEN}, (SEEN,), "'others'"),
        ({"seen": SEEN}, (), "counting.seen"),
    ],
)
def test_counters_have_names_and_columns_of_their_own(counters, fields, words):
    kind = type("Other", (Method,), {"counters": counters})
    with pytest.raises(ValueError, match=f"counting.counters: got {words}; allowed"):
        Core(methods=(*METHODS, kind("counting", *fields)), max_slots=1, vocab_size=VOCAB)


def test_two_methods_do_not_share_a_name():
    with pytest.raises(ValueError, match="'top1' twice"):
        Core(methods=(*METHODS, Method("top1")), max_slots=1, vocab_size=VOCAB)


def test_a_method_that_forces_without_saying_so_is_loud():
    class Silent(Method):
        def serves(self, config):
            return isinstance(config, Top1)

        def control(self, rows):
            start_forcing(rows, rows[self.on], rows[self.on][:, None].long(), rows[self.on].long())

    methods = (*(m for m in METHODS if m.name != "top1"), Silent("silent"))
    spec = {**SPEC, "methods": [{"method": "soft_thinking", "cold_stop": None}, {"method": "top1"}]}
    request = bind(parse_spec(spec), methods=methods, tokenizer=None, vocab_size=VOCAB)
    core = Core(methods=methods, max_slots=1, vocab_size=VOCAB)
    core.add(0, request, [START])
    with pytest.raises(TypeError, match=r"Need\.FORCING"):
        core.step(torch.zeros(1, VOCAB), torch.arange(1))


def test_mode_changes_count_what_was_fed_and_not_what_a_gate_did():
    spec = {**SPEC, "methods": [{"method": "soft_thinking", "cold_stop": None}], "seed": 1}
    request = bind(parse_spec(spec), methods=METHODS, tokenizer=None, vocab_size=VOCAB)
    core = Core(methods=METHODS, max_slots=1, vocab_size=VOCAB)
    core.add(0, request, [5])
    recorder, slots = Recorder(core, [request], "hf"), torch.arange(1)
    # discrete, then opened; latent twice; ended; discrete
    for token in (6, START, 7, 8, END, 9):
        logits = torch.zeros(1, VOCAB)
        logits[0, token] = 30.0
        recorder.append(core.commit(core.step(logits, slots).argmax(1), slots))
    (trace,) = recorder.traces()
    assert trace.counts.latent_steps >= 2
    assert (trace.counts.gate_switches, trace.counts.mode_changes) == (0, 2)
