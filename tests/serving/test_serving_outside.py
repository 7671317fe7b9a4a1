"""A method from outside that goes wrong: in each hook, with each kind of wrong result."""

import faulty_method as faulty
import outside
import pytest
import test_serving_batch as account
import torch

from tokenlens import core
from tokenlens.errors import MethodError, SpecError
from tokenlens.methods import active
from tokenlens.serving.batch import REWIND_STEPS, Batch
from tokenlens.serving.report import report_of
from tokenlens.serving.store import PAGE, ConceptStore, entry_bytes
from tokenlens.spec import parse_spec

VOCAB = account.VOCAB
SOFT = [{"method": "soft_thinking", "max_entries": 4}]
WORDS = {
    "soft": SOFT,
    "bans": [*SOFT, {"method": "min_p", "min_p": 0.1}],
    "gated": [{"method": "think_router", "max_entries": 4}],
    "ends": [{"method": "answer_now", "after": 3}],
}
"""Neighbours: a latent method, a logit edit, a gate, a forced text. One asks for nothing."""


@pytest.fixture(autouse=True)
def let_in():
    with outside.let_in(faulty.FaultyMethod, "pulse_gate"):
        yield


def bound(methods, trace="summary"):
    spec = {"methods": methods, "phase": account.SPEC["phase"], "trace": {"level": trace}}
    return core.bind(
        parse_spec(spec), methods=active(), tokenizer=None, vocab_size=VOCAB, eos_ids=[0]
    )


def make():
    device = torch.device("cpu")
    store = ConceptStore(12, VOCAB, 64 * PAGE * entry_bytes(VOCAB), 400, device)
    made = core.Core(
        methods=active(),
        max_slots=12,
        vocab_size=VOCAB,
        rewind_steps=REWIND_STEPS,
        history=(store.weights, store.ids),
    )
    return Batch(made, store, account.Pointers(4096))


def decode(batch, names, steps=6):
    """Tokens, and what was fed, of each request until it ended."""
    found = {name: [] for name in names}
    for step in range(steps):
        first = step == 0
        computed = account.np.array([0 if first else 1 + step] * len(names))
        batch.begin(names, computed, account.np.array([2 if first else 1] * len(names)))
        account.Calls.count += 1
        stock = torch.stack([account.logits_of(index, step) for index in range(len(names))])
        edited = batch.decide(stock.clone(), in_place=step % 2 == 0)
        sampled = edited.argmax(1)
        rows = batch.advanced()
        report = report_of(batch, batch.commit(sampled), rows, 100)
        failed = {}
        reports = report.result(failed) if report else {}
        assert failed == {}
        for row, name in enumerate(names):
            live = batch.live.get(name)
            fed = None
            if live is not None:
                fed = account.newest(batch, name)
            seen = reports.get(name)
            step_of = None if seen is None or seen.step is None else str(seen.step)
            found[name].append((int(sampled[row]), edited[row].tolist(), fed, step_of))
    return found


NAMES = [*WORDS, "nothing"]


def run(fault, trace="summary"):
    """The neighbours beside a request with a fault, or beside one that asks for nothing."""
    batch = make()
    for name, methods in WORDS.items():
        batch.admit(name, bound(methods, trace), [1, 1], 2)
    if fault is not None:
        batch.admit("faulty", bound([{"method": "faulty", "fault": fault}]), [1, 1], 2)
    return batch, decode(batch, [*NAMES, "faulty"])


@pytest.fixture(scope="module")
def neighbours():
    """What they do without it."""
    with outside.let_in(faulty.FaultyMethod, "pulse_gate"):
        return {trace: run(None, trace)[1] for trace in ("summary", "full")}


# What records for traces is another path, and a slower one.
@pytest.mark.parametrize(
    ("fault", "trace"),
    [
        *((fault, "full") for fault in ["", *faulty.ENDED, *faulty.INVALID, *faulty.GREEDY]),
        *((fault, "summary") for fault in ["", *faulty.GREEDY]),
    ],
)
def test_whatever_goes_wrong_harms_no_other_request(fault, trace, neighbours):
    batch, found = run(fault, trace)
    for name in NAMES:
        assert found[name] == neighbours[trace][name], name
    failed = batch.take_failed()
    if fault not in faulty.ENDED:
        assert failed == {}
        assert len(found["faulty"]) == 6
        logits = torch.tensor([one[1] for one in found["faulty"]])
        weights = torch.tensor([one[2][0] for one in found["faulty"]])
        assert bool(logits.amax(1).isfinite().all())
        assert bool(weights.isfinite().all())
        ids = torch.tensor([one[2][1] for one in found["faulty"]])
        assert bool(((ids >= 0) & (ids < VOCAB)).all())
        return
    hook = (faulty.RAISES | faulty.WRONG)[fault]
    assert set(failed) == {"faulty"}
    assert "the method faulty of this request" in failed["faulty"]
    assert f"in its hook {hook}" in failed["faulty"]
    # The author's words are for the log.
    assert "/a/path" not in failed["faulty"]
    assert batch.slots_in_use == len(WORDS)


@pytest.mark.parametrize("fault", faulty.REFUSED)
def test_what_goes_wrong_at_admission_is_that_requests(fault):
    with pytest.raises((MethodError, SpecError), match="faulty") as caught:
        bound([{"method": "faulty", "fault": fault}])
    if fault == "admit a NaN":
        assert isinstance(caught.value, SpecError)
        return
    hook = (faulty.RAISES | faulty.WRONG)[fault]
    assert f"from its hook {hook}; allowed: " in str(caught.value)


def test_several_that_go_wrong_in_one_step_each_end_alone(neighbours):
    batch = make()
    for name, methods in WORDS.items():
        batch.admit(name, bound(methods), [1, 1], 2)
    guilty = ["propose raises", "edit one row", "ids as floats", "commit raises"]
    fine = ["edit a NaN", "", "answer for all"]
    for fault in (*guilty, *fine):
        batch.admit(fault, bound([{"method": "faulty", "fault": fault}]), [1, 1], 2)
    found = decode(batch, [*NAMES, "x", *guilty, *fine])
    assert {name: found[name] for name in NAMES} == {
        name: neighbours["summary"][name] for name in NAMES
    }
    # Others with the same method go on, all of their state with them.
    assert set(batch.take_failed()) == set(guilty)
    slots = [batch.live[fault].slot for fault in fine]
    assert batch.core.table.column(faulty.COUNT)[slots].tolist() == [6, 6, 6]


def test_without_the_guard_neighbours_are_harmed(monkeypatch, neighbours):
    kind = faulty.FaultyMethod
    made = next(one for one in active() if one.name == "faulty")
    assert type(made) is not kind
    for hook in ("edit", "propose"):
        monkeypatch.setattr(type(made), hook, getattr(kind, hook))
    harmed = []
    for fault in ("edit all", "force all", "edit all in place"):
        _, found = run(fault)
        harmed.append(found["nothing"] != neighbours["summary"]["nothing"])
    assert harmed == [True, True, True]


def test_without_the_look_at_ids_a_step_raises(monkeypatch):
    from tokenlens.core import soundness

    monkeypatch.setattr(soundness, "keep_known", lambda rows, *_: rows.constant(True))
    batch, _ = run("a token nowhere")
    assert set(batch.take_failed()) == {"faulty"}


def test_a_method_that_feeds_no_mixtures_feeds_none(monkeypatch, neighbours):
    """Its config is not of the latent family, so that no engine keeps mixtures for it."""
    monkeypatch.setattr(faulty.Faulty, "family", ())
    with outside.let_in():
        from tokenlens.methods.guard import guarded

        bare = guarded(faulty.FaultyMethod, "faulty", latent=False)()
        methods = tuple(bare if one.name == "faulty" else one for one in active())
    request = core.bind(
        parse_spec({"methods": [{"method": "faulty"}], "phase": account.SPEC["phase"]}),
        methods=methods, tokenizer=None, vocab_size=VOCAB,
    )  # fmt: skip
    made = core.Core(methods=methods, max_slots=1, vocab_size=VOCAB)
    made.add(0, request, [1, 1])
    slots = torch.zeros(1, dtype=torch.int64)
    edited = made.step(account.logits_of(0, 0)[None], slots)
    report = made.commit(edited.argmax(1), slots)
    assert not bool(report.latent.any())
