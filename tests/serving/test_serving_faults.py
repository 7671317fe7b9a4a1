"""An exception while one request is admitted, resumed or decided ends that request alone."""

import pytest
import test_serving_batch as account
import torch
from built_in import Core, bind

from tokenlens.methods.top1.step import Top1Method
from tokenlens.serving.batch import Batch
from tokenlens.serving.faults import BROKEN, BROKEN_STEP, TAKEN_BACK
from tokenlens.serving.report import report_of
from tokenlens.spec import parse_spec

VOCAB = account.VOCAB
ONE = [{"method": "soft_thinking", "max_entries": 4}]


class PlantedError(RuntimeError):
    pass


def request(methods=ONE):
    spec = parse_spec({"methods": methods, "phase": account.SPEC["phase"]})
    return bind(spec, tokenizer=None, vocab_size=VOCAB, eos_ids=[0])


def run(batch, names, steps=1, start=0):
    """Decode rows of one token each; what each was fed last."""
    for step in range(start, start + steps):
        first = step == 0
        computed = account.np.array([0 if first else 2 + step - 1] * len(names))
        batch.begin(names, computed, account.np.array([2 if first else 1] * len(names)))
        account.Calls.count += 1
        logits = torch.stack([account.logits_of(3, step) for _ in names])
        edited = batch.decide(logits)
        batch.commit(edited.argmax(1))
    return [account.newest(batch, name)[0] for name in names if name in batch.live]


def both(batch, guilty=(*ONE, {"method": "top1"})):
    batch.admit("good", request(), [1, 5], 2)
    batch.admit("bad", request(list(guilty)), [1, 5], 2)
    return ["good", "bad"]


def test_a_request_that_cannot_be_decided_ends_alone(monkeypatch):
    expected = account.make()
    expected.admit("good", request(), [1, 5], 2)
    wanted = run(expected, ["good"], 3)
    batch = account.make()
    names = both(batch)
    run(batch, names)
    gate = Top1Method.gate

    def broken(self, rows, signals, proposal):
        # Reads the device, as only a test may.
        if bool(rows[self.on].any()):
            raise PlantedError
        gate(self, rows, signals, proposal)

    monkeypatch.setattr(Top1Method, "gate", broken)
    run(batch, names, 1, start=1)
    assert set(batch.failed) == {"bad"}
    assert set(batch.live) == {"good"}
    assert batch.slots_in_use == 1
    assert run(batch, names, 1, start=2) == wanted


def test_a_method_that_raises_whatever_it_sees_ends_only_those_that_asked_for_it(monkeypatch):
    batch = account.make()
    names = both(batch)
    run(batch, names)

    def broken(*_):
        raise PlantedError

    monkeypatch.setattr(Top1Method, "gate", broken)
    run(batch, names, 1, start=1)
    assert set(batch.failed) == {"bad"}
    assert set(batch.live) == {"good"}


def test_a_step_that_cannot_be_prepared_ends_its_requests_and_feeds_no_mixture(monkeypatch):
    batch = account.make()
    names = both(batch)
    run(batch, names)
    monkeypatch.setattr(batch, "_find_pointers", lambda *_: 1 / 0)
    run(batch, names, 1, start=1)
    assert set(batch.take_failed()) == {"good", "bad"}
    assert bool((batch.embedding.pointers == -1).all())
    assert batch.slots_in_use == 0


@pytest.mark.parametrize("latent", [True, False])
@pytest.mark.parametrize("broken", ["begin", "commit"])
def test_a_broken_step_ends_requests_of_other_rows_than_the_last(latent, broken, monkeypatch):
    batch = account.make()
    edits = [{"method": "edt"}]
    if not latent:
        # As on a server that allows no latent method.
        core = Core(max_slots=6, vocab_size=VOCAB, rewind_steps=2)
        batch = Batch(core, batch.store, None)
    for name in "abc":
        batch.admit(name, request(ONE if latent else edits), [1, 5], 2)
    batch.begin(["a"], account.np.array([0]), account.np.array([2]))
    account.Calls.count += 1
    batch.commit(batch.decide(account.logits_of(3, 0)[None]).argmax(1))
    rows = ["a", "b", "c"]
    if broken == "begin":
        notice = batch._notice_rows
        first = iter([lambda *_: 1 / 0])
        monkeypatch.setattr(batch, "_notice_rows", lambda rows: next(first, notice)(rows))
        batch.begin(rows, account.np.array([2, 0, 0]), account.np.array([1, 2, 2]))
    else:
        monkeypatch.setattr(batch.core, "commit", lambda *_: 1 / 0)
        batch.begin(rows, account.np.array([2, 0, 0]), account.np.array([1, 2, 2]))
        account.Calls.count += 1
        batch.commit(torch.zeros(3, dtype=torch.int64))
    assert batch.take_failed() == dict.fromkeys(rows, BROKEN_STEP)
    assert batch.slots_in_use == 0


def test_a_report_that_cannot_be_read_ends_its_requests(monkeypatch):
    batch = account.make()
    names = both(batch)
    batch.begin(names, account.np.array([0, 0]), account.np.array([2, 2]))
    account.Calls.count += 1
    sampled = batch.decide(torch.stack([account.logits_of(3, 0)] * 2)).argmax(1)
    rows = batch.advanced()
    step = batch.commit(sampled)
    report = report_of(batch, step, rows, 10)
    assert set(report.result({})) == set(names)
    monkeypatch.setattr(batch, "saw", lambda *_: 1 / 0)
    failed = {}
    assert report.result(failed) == {}
    assert failed == dict.fromkeys(names, BROKEN_STEP)
    monkeypatch.setattr(batch, "totals", lambda: 1 / 0)
    assert report_of(batch, step, rows, 10) is None
    assert batch.failed == dict.fromkeys(names, BROKEN_STEP)


@pytest.mark.parametrize("hook", ["core.add", "core.rewind", "store.take_page", "core.commit"])
def test_an_exception_elsewhere_fails_requests_and_not_the_engine(hook, monkeypatch):
    batch = account.make()
    names = both(batch)
    run(batch, names)
    owner, name = hook.split(".")

    def raise_it(*_args, **_kwargs):
        raise PlantedError

    monkeypatch.setattr(getattr(batch, owner), name, raise_it)
    if hook == "core.add":
        with pytest.raises(PlantedError):
            batch.admit("third", request(), [1, 5], 2)
        assert set(batch.live) == {"good", "bad"}
        return
    if hook == "core.rewind":
        batch.preempt("bad")
        batch.resume("bad", 0)
        assert set(batch.failed) == {"bad"}
        return
    if hook == "store.take_page":
        batch.store.pages[batch.live["bad"].slot] = -1
    run(batch, names, 1, start=1)
    alone = hook == "store.take_page"
    failed = batch.take_failed()
    assert failed == ({"bad": BROKEN} if alone else dict.fromkeys(names, BROKEN_STEP))
    assert ("good" in batch.live) == alone
    assert batch.slots_in_use == len(batch.live)
    monkeypatch.undo()
    batch.admit("new", request(), [1, 5], 2)
    assert batch.live["new"].slot >= 0


def test_a_request_that_ended_has_not_failed():
    batch = account.make()
    batch.failed["gone"] = BROKEN
    batch.finish(["gone"])
    assert batch.take_failed() == {}


@pytest.mark.parametrize("known", [0, 9])
def test_what_cannot_be_taken_back_is_said_so(known):
    batch = account.make()
    names = both(batch)
    run(batch, names, account.REWIND_STEPS + 1)
    batch.preempt("bad")
    batch.resume("bad", known)
    assert batch.take_failed() == {"bad": TAKEN_BACK}
