"""Requests beside drafts: a small scheduler of the test's own against each request alone.

It chunks prompts, preempts, drops tokens that are in flight, and reads reports some steps late, as
an engine does that schedules ahead. Every token has to be the one without drafts.
"""

import random
from collections import deque
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from built_in import Core, bind

from tokenlens.serving.batch import REWIND_STEPS
from tokenlens.serving.drafts import DraftedBatch, rewind_steps
from tokenlens.serving.embedding import Calls
from tokenlens.serving.faults import HELD, TAKEN_BACK
from tokenlens.serving.report import report_of
from tokenlens.serving.store import ConceptStore
from tokenlens.spec import parse_spec
from tokenlens.trace.reports import RequestReport

VOCAB, TOKENS, DRAFTS = 40, 24, 3
PHASE = {"think_start": [1], "think_end": [2]}
SPECS = (
    [{"method": "answer_now", "after": 7}],
    [{"method": "thinking_budget", "budget": 9, "ramp": 0.5}],
    [{"method": "no_thinking"}],
    [{"method": "edt"}],
    [{"method": "min_p", "min_p": 0.3}, {"method": "answer_now", "after": 15}],
    [{"method": "top_h"}],
    [{"method": "thinking_budget", "budget": 12}],
    [{"method": "soft_thinking"}, {"method": "answer_now", "after": 13}],
    [{"method": "lead"}],
)


def make(max_slots=6):
    store = ConceptStore(max_slots, VOCAB, 1 << 20, 400, torch.device("cpu"))
    core = Core(
        max_slots=max_slots,
        vocab_size=VOCAB,
        rewind_steps=rewind_steps(DRAFTS),
        history=(store.weights, store.ids),
    )
    # What a model's embedding is told
    embedding = SimpleNamespace(pointers=torch.full((400,), -1))
    return DraftedBatch(core, store, embedding, DRAFTS)


def request_of(index):
    spec = {"methods": SPECS[index], "phase": PHASE, "trace": {"level": "full"}}
    return bind(parse_spec(spec), tokenizer=None, vocab_size=VOCAB)


def logits_of(index, number):
    """Logits that depend on the request and on how many tokens it has, and on nothing else."""
    generator = torch.Generator().manual_seed(1000 * index + number)
    return torch.randn(VOCAB, generator=generator) * 3


def alone(index, prompt):
    """The same request in a core of its own, without drafts.

    Returns its tokens, what is counted, and what is fed next, ``None`` where that is the token.
    """
    core = Core(max_slots=1, vocab_size=VOCAB)
    core.add(0, request_of(index), prompt)
    tokens, counts, fed, slots = [], [], [], torch.tensor([0])
    for number in range(TOKENS):
        sampled = core.step(logits_of(index, number)[None], slots).argmax(dim=1)
        core.commit(sampled, slots)
        tokens.append(int(sampled))
        counts.append({name: int(core.table.column(c)[0]) for name, c in core.totals.items()})
        mixture = core.next_input.weights[0].clone(), core.next_input.ids[0].clone()
        fed.append(mixture if core.next_input.latent[0] else None)
    return tokens, counts, fed


class Account:
    """One request as the scheduler knows it."""

    def __init__(self, index):
        self.index = index
        self.prompt = [3 + index, 1, *(5 + (index + j) % 30 for j in range(index))]
        self.expected, self.counts, self.fed = alone(index, self.prompt)
        self.latent = request_of(index).spec.latent is not None
        self.tokens, self.computed, self.state, self.newest = [], 0, "waiting", 0

    @property
    def known(self):
        return len(self.prompt) + len(self.tokens)


class Schedule:
    """Random steps of a batch with all requests."""

    def __init__(self, seed):
        self.chance, self.batch = random.Random(seed), make(max_slots=3)
        self.accounts = {f"r{index}": Account(index) for index in range(len(SPECS))}
        self.reports, self.accepted, self.dropped, self.told = deque(), 0, 0, 0
        self.mixtures = 0

    def run(self):
        for _ in range(150):
            running = self._come_and_go()
            if running:
                self._step(running)
            while len(self.reports) > self.chance.randrange(3):
                self._read()

    def _come_and_go(self):
        chance, batch = self.chance, self.batch
        running = [name for name, one in self.accounts.items() if one.state == "running"]
        for name, one in self.accounts.items():
            if one.state == "waiting" and len(running) < 3 and chance.random() < 0.5:
                batch.admit(name, request_of(one.index), one.prompt, len(one.prompt))
            elif one.state == "preempted" and len(running) < 3 and chance.random() < 0.3:
                # Of the newest step, which the scheduler had not taken yet.
                drop = chance.randint(0, one.newest)
                self.dropped += drop
                one.tokens = one.tokens[: len(one.tokens) - drop]
                batch.resume(name, len(one.tokens))
                one.newest = 0
            else:
                continue
            one.state = "running"
            running.append(name)
        for name in list(running):
            one = self.accounts[name]
            if chance.random() < 0.08:
                batch.preempt(name)
                one.state, one.computed = "preempted", 0
                running.remove(name)
            elif len(one.tokens) >= TOKENS:
                batch.finish([name])
                one.state = "done"
                running.remove(name)
        chance.shuffle(running)
        return running

    def _drafts(self, one, count):
        """Drafts behind what is known, where the pass reaches it."""
        if one.computed + count < one.known or not one.tokens or one.latent:
            return []
        true = one.expected[len(one.tokens) :]
        drafts = true[: self.chance.randint(0, min(DRAFTS, len(true) - 1))]
        return [
            self.chance.choice([2, 7, self.chance.randrange(VOCAB)])
            if self.chance.random() < 0.3
            else draft
            for draft in drafts
        ]

    def _step(self, running):
        chance, batch = self.chance, self.batch
        accounts = [self.accounts[name] for name in running]
        counts = [min(chance.randrange(1, 12), one.known - one.computed) for one in accounts]
        drafts = [self._drafts(one, count) for one, count in zip(accounts, counts, strict=True)]
        logits, fed, positions = [], [], []
        for one, count, guessed in zip(accounts, counts, drafts, strict=True):
            text = [*one.prompt, *one.tokens, *guessed]
            begin = len(one.tokens)
            for offset in range(len(guessed) + 1):
                right = guessed[:offset] == one.expected[begin : begin + offset]
                number = begin + offset if right else 500 + offset
                logits.append(logits_of(one.index, number))
                place = one.computed + count - 1 + offset
                positions.append(place)
                fed.append(text[place])
        ahead = [count + len(guessed) for count, guessed in zip(counts, drafts, strict=True)]
        batch.expect(np.array([len(guessed) for guessed in drafts]), len(running))
        # What the host believes to be computed is of no use, but for those without drafts.
        computed = [one.computed if one.latent else 10_000 for one in accounts]
        Calls.count += 1
        batch.begin(running, np.array(computed), np.array(ahead))
        Calls.count += 1
        self._check_fed(accounts, ahead)
        edited = batch.decide_rows(torch.stack(logits), torch.tensor(fed), torch.tensor(positions))
        best = edited.argmax(dim=1).tolist()
        sampled = torch.zeros(len(running), DRAFTS + 1, dtype=torch.int64)
        num_sampled = torch.zeros(len(running), dtype=torch.int32)
        row = 0
        for i, (one, count, guessed) in enumerate(zip(accounts, counts, drafts, strict=True)):
            mine, row = best[row : row + len(guessed) + 1], row + len(guessed) + 1
            one.computed += count
            if one.computed < one.known:
                continue
            accepted = 0
            while accepted < len(guessed) and guessed[accepted] == mine[accepted]:
                accepted += 1
            taken = mine[: accepted + 1]
            sampled[i, : len(taken)], num_sampled[i] = torch.tensor(taken), len(taken)
            begin = len(one.tokens)
            assert taken == one.expected[begin : begin + len(taken)], (running[i], begin)
            one.tokens += taken
            one.newest = len(taken)
            one.computed += accepted
            self.accepted += accepted
        rows = batch.advanced()
        step = batch.commit_rows(sampled, num_sampled)
        made = {running[i]: int(n) for i, n in enumerate(num_sampled)}
        numbers = {name: len(self.accounts[name].tokens) for name in running}
        self.reports.append((report_of(batch, step, rows, 1000), made, numbers))

    def _check_fed(self, accounts, scheduled):
        """Mixtures stand where they belong, and nowhere else."""
        pointers, place = self.batch.embedding.pointers.tolist(), 0
        for one, count in zip(accounts, scheduled, strict=True):
            for index in range(
                one.computed - len(one.prompt), one.computed - len(one.prompt) + count
            ):
                entry, place = pointers[place], place + 1
                wanted = one.fed[index] if one.latent and index >= 0 else None
                if entry < 0 or wanted is None:
                    # The token itself, or an entry that has nothing else
                    assert wanted is None
                    assert entry < 0 or self.batch.store.weights[entry].max() == 1
                    continue
                self.mixtures += 1
                weights, ids = self.batch.store.weights[entry], self.batch.store.ids[entry]
                assert torch.equal(weights[: len(wanted[0])], wanted[0])
                assert torch.equal(ids[: len(wanted[1])], wanted[1])
        assert all(entry < 0 for entry in pointers[place:])

    def _read(self):
        """A report, which says of each token what a request without drafts counts there."""
        report, made, numbers = self.reports.popleft()
        for name, found in (report.result({}) if report else {}).items():
            one = self.accounts[name]
            for kept in range(1, made[name] + 1):
                told = RequestReport.of(list(found)).of_first(kept)
                number = numbers[name] - made[name] + kept
                assert told.counts == one.counts[number - 1]
                assert told.step["token"] == one.expected[number - 1]
                assert len(told.accepted) == kept - 1
                self.told += 1


@pytest.mark.parametrize("seed", range(3))
def test_random_schedules_decide_what_each_request_alone_does(seed):
    schedule = Schedule(seed)
    schedule.run()
    assert schedule.accepted > 20
    assert schedule.dropped > 0
    assert schedule.told > 60
    assert schedule.mixtures > 30
    assert not schedule.batch.failed
    assert all(one.state == "done" for one in schedule.accounts.values())


def test_without_the_rewind_the_schedules_differ(monkeypatch):
    monkeypatch.setattr(Core.func, "rewind_rows", lambda *_: None)
    schedule = Schedule(0)
    with pytest.raises(AssertionError):
        schedule.run()


def test_a_latent_request_that_has_drafts_ends():
    batch = make()
    batch.admit("a", request_of(7), [3, 1], 2)
    batch.admit("b", request_of(0), [3, 1], 2)
    batch.expect(np.array([2, 1]), 2)
    batch.begin(["a", "b"], np.array([1, 1]), np.array([3, 2]))
    assert batch.failed == {"a": HELD}
    Calls.count += 1
    logits = torch.stack([logits_of(0, number) for number in range(5)])
    edited = batch.decide_rows(logits.clone(), torch.arange(5), torch.tensor([1, 2, 3, 1, 2]))
    assert torch.equal(edited[:3], logits[:3])
    assert batch.commit_rows(torch.full((2, 3), 5), torch.ones(2)) is not None
    assert set(batch.live) == {"b"}


def test_more_than_can_be_taken_back_ends_the_request():
    batch = make()
    batch.admit("a", request_of(0), [3, 1], 2)
    for _ in range(REWIND_STEPS + 2):
        batch.expect(np.array([DRAFTS]), 1)
        batch.begin(["a"], np.array([0]), np.array([1]))
        assert batch.advanced()
    batch.preempt("a")
    batch.resume("a", 0)
    assert batch.failed == {"a": TAKEN_BACK}


def test_an_exception_in_a_step_ends_its_requests_and_leaves_the_logits(monkeypatch):
    batch = make()
    batch.admit("a", request_of(0), [3, 1], 2)
    batch.expect(np.array([1]), 1)
    batch.begin(["a"], np.array([1]), np.array([2]))
    logits = torch.stack([logits_of(0, 0), logits_of(0, 1)])
    monkeypatch.setattr(batch.core, "step", lambda *_, **__: 1 / 0)
    edited = batch.decide_rows(logits.clone(), torch.tensor([1, 7]), torch.tensor([1, 2]))
    assert torch.equal(edited, logits)
    assert batch.commit_rows(torch.zeros(1, 2), torch.ones(1)) is None
    assert set(batch.failed) == {"a"}
    assert batch.slots_in_use == 0


def test_a_core_that_keeps_too_few_states_is_refused():
    store = ConceptStore(2, 8, 1, 400, torch.device("cpu"))
    with pytest.raises(ValueError, match="rewind_steps: got 4"):
        DraftedBatch(Core(max_slots=2, vocab_size=VOCAB, rewind_steps=4), store, None, DRAFTS)
