"""Slots, rows and entries against a simple account of what every request was fed.

A small scheduler of the test's own admits, chunks, preempts, drops and aborts at random. What the
forward pass would be fed has to be what was decided, whatever happened in between.
"""

import random
import sys

import numpy as np
import pytest
import torch
from built_in import Core, bind

from tokenlens.core import Phase
from tokenlens.serving.batch import REWIND_STEPS, Batch
from tokenlens.serving.embedding import Calls
from tokenlens.serving.faults import FORGOTTEN
from tokenlens.serving.store import PAGE, ConceptStore, entry_bytes
from tokenlens.spec import parse_spec

VOCAB = 40
SPEC = {
    "methods": [{"method": "soft_thinking", "max_entries": 4}, {"method": "random_route"}],
    "phase": {"think_start": [1], "think_end": [2]},
}


class Pointers:
    """Stands in for the embedding: it has the buffer that the batch writes."""

    def __init__(self, max_tokens):
        self.pointers = torch.full((max_tokens,), -1, dtype=torch.int64)


def make(max_slots=6, pages=64, max_tokens=400):
    """A batch with room for so many pages."""
    num_bytes = pages * PAGE * entry_bytes(8)
    store = ConceptStore(max_slots, 8, num_bytes, max_tokens, torch.device("cpu"))
    assert store.num_pages == pages
    core = Core(
        max_slots=max_slots,
        vocab_size=VOCAB,
        rewind_steps=REWIND_STEPS,
        history=(store.weights, store.ids),
    )
    return Batch(core, store, Pointers(4096))


def logits_of(request, number):
    """Logits that depend on the request and on how many tokens it has, and on nothing else."""
    generator = torch.Generator().manual_seed(1000 * request + number)
    return torch.randn(VOCAB, generator=generator) * 3


def fed(batch, place):
    """What the token at a place of the forward pass is fed: ids and weights, None for itself."""
    Calls.count += 1
    entry = int(batch.embedding.pointers[place])
    if entry < 0:
        return None
    weights = batch.store.weights[entry]
    live = weights > 0
    return tuple(batch.store.ids[entry][live].tolist()), tuple(weights[live].tolist())


def newest(batch, name):
    """Weights and ids of what a request's newest token is fed as."""
    slot = batch.live[name].slot
    number = batch._generated[slot] - 1
    entry = int(batch.store.entries(np.array([slot]), np.array([number]))[0])
    return batch.store.weights[entry].tolist(), batch.store.ids[entry].tolist()


class Account:
    """One request as it should be: its prompt, its tokens, what each was fed as."""

    def __init__(self, index, prompt):
        self.index, self.prompt = index, prompt
        self.tokens, self.mixtures = [], []
        self.computed = 0
        self.state = "waiting"

    @property
    def known(self):
        return len(self.prompt) + len(self.tokens)


def alone(index, prompt, steps, seed):
    """The same request with nothing else and no trouble."""
    batch = make()
    request = bind(parse_spec({**SPEC, "seed": seed}), tokenizer=None, vocab_size=VOCAB)
    batch.admit("r", request, prompt, len(prompt))
    tokens, mixtures, computed = [], [], 0
    for number in range(steps):
        count = len(prompt) if number == 0 else 1
        batch.begin(["r"], np.array([computed]), np.array([count]))
        if number > 0:
            mixtures.append(fed(batch, 0))
        computed += count
        edited = batch.decide(logits_of(index, number)[None])
        sampled = edited.argmax(dim=1)
        batch.commit(sampled)
        tokens.append(int(sampled))
    return tokens, mixtures


@pytest.mark.parametrize("seed", range(2))
def test_random_schedules_feed_what_was_decided(seed):
    chance = random.Random(seed)
    # Few slots, so that preempted requests have to give theirs up.
    batch = make(max_slots=3)
    accounts = {
        f"r{i}": Account(i, [3 + i, 1, *(5 + (i + j) % 30 for j in range(chance.randrange(9)))])
        for i in range(7)
    }
    seeds = {name: chance.randrange(100) for name in accounts}
    expected = {n: alone(a.index, a.prompt, 28, seeds[n]) for n, a in accounts.items()}
    checked = replayed = 0
    for _ in range(130):
        running = [n for n, a in accounts.items() if a.state == "running"]
        for name, account in accounts.items():
            if account.state == "waiting" and len(running) < 3 and chance.random() < 0.5:
                request = bind(
                    parse_spec({**SPEC, "seed": seeds[name]}), tokenizer=None, vocab_size=VOCAB
                )
                batch.admit(name, request, account.prompt, len(account.prompt))
                account.state = "running"
                running.append(name)
            elif account.state == "preempted" and len(running) < 3 and chance.random() < 0.3:
                # The newest tokens may have been dropped on the way.
                drop = chance.randrange(min(3, len(account.tokens) + 1))
                if drop:
                    del account.tokens[-drop:]
                    del account.mixtures[-drop:]
                batch.resume(name, len(account.tokens))
                account.state = "running"
                running.append(name)
        for name in list(running):
            account = accounts[name]
            if chance.random() < 0.06:
                batch.preempt(name)
                account.state, account.computed = "preempted", 0
                running.remove(name)
            elif len(account.tokens) >= 26 or chance.random() < 0.004:
                batch.finish([name])
                account.state = "done"
                running.remove(name)
        if not running:
            continue
        chance.shuffle(running)
        counts = [
            min(chance.randrange(1, 12), accounts[n].known - accounts[n].computed) for n in running
        ]
        computed = [accounts[n].computed for n in running]
        batch.begin(running, np.array(computed), np.array(counts))
        place = 0
        for name, start, count in zip(running, computed, counts):
            account = accounts[name]
            for position in range(start, start + count):
                number = position - len(account.prompt)
                got = fed(batch, place)
                if number < 0:
                    assert got is None
                else:
                    assert got == expected[name][1][number], (name, number)
                    checked += 1
                    replayed += count > 1
                place += 1
        rows = torch.stack([logits_of(accounts[n].index, len(accounts[n].tokens)) for n in running])
        sampled = batch.decide(rows).argmax(dim=1)
        batch.commit(sampled)
        for row, (name, start, count) in enumerate(zip(running, computed, counts)):
            account = accounts[name]
            account.computed = start + count
            if account.computed == account.known:
                account.tokens.append(int(sampled[row]))
                account.mixtures.append(None)
                number = len(account.tokens) - 1
                assert account.tokens[number] == expected[name][0][number], (name, number)
    assert checked > 80
    assert replayed > 20
    assert not batch.failed
    batch.finish(list(accounts))
    assert (batch.slots_in_use, batch.store.pages_in_use) == (0, 0)


def test_a_request_that_cannot_be_admitted_holds_nothing(monkeypatch):
    batch = make(max_slots=2)
    request = bind(parse_spec(SPEC), tokenizer=None, vocab_size=VOCAB)
    batch.admit("a", request, [3, 1], 2)
    with monkeypatch.context() as broken:
        broken.setattr(batch.core.table, "write", lambda *_: 1 / 0)
        for name in ("b", "c", "d"):
            with pytest.raises(ZeroDivisionError):
                batch.admit(name, request, [4, 1], 2)
    assert list(batch.live) == ["a"]
    assert batch.slots_in_use == 1
    batch.admit("b", request, [4, 1], 2)
    batch.finish(["a", "b", "c"])
    assert (batch.slots_in_use, batch.store.pages_in_use) == (0, 0)


def test_equal_noise_is_noticed_without_keeping_prompts():
    batch = make(max_slots=4)
    drawing = {**SPEC, "seed": 3}
    request = bind(parse_spec(drawing), tokenizer=None, vocab_size=VOCAB)
    other = bind(parse_spec({**drawing, "seed": 4}), tokenizer=None, vocab_size=VOCAB)
    long = [3, 1] * 5000
    batch.admit("a", request, long, len(long))
    batch.admit("b", other, long, len(long))
    batch.admit("c", request, [*long, 3], len(long) + 1)
    assert not any(live.same_noise for live in batch.live.values())
    assert max(sys.getsizeof(live.noise[1]) for live in batch.live.values()) < 100
    batch.admit("d", request, long, len(long))
    assert {name for name, live in batch.live.items() if live.same_noise} == {"a", "d"}


def test_a_request_that_lost_its_history_is_reported():
    batch = make(pages=1)
    request = bind(parse_spec(SPEC), tokenizer=None, vocab_size=VOCAB)
    for name, prompt in (("a", [3, 1]), ("b", [4, 1])):
        batch.admit(name, request, prompt, 2)
    computed = np.array([0, 0])
    count = np.array([2, 2])
    for number in range(4):
        batch.begin(["a", "b"], computed, count)
        fed(batch, 0)
        batch.commit(batch.decide(torch.stack([logits_of(0, number)] * 2)).argmax(dim=1))
        computed, count = computed + count, np.array([1, 1])
    assert not batch.failed
    assert batch.store.pages_in_use == 1
    for name in ("a", "b"):
        batch.preempt(name)
        batch.resume(name, 4)
    batch.begin(["a", "b"], np.array([0, 0]), np.array([6, 6]))
    assert batch.failed == {"b": FORGOTTEN}


def blocks(number):
    """Logits with which thinking ends and begins again, in answers of several pages."""
    ends, starts = (20, 300, 330), (280, 310)
    logits = logits_of(3, number)
    logits[[1, 2]] = -50.0
    if number in starts + ends:
        logits[1 if number in starts else 2] = 50.0
    return logits


def write_blocks(batch, steps, lag):
    """One request alone, its reports ``lag`` steps late; returns what was fed and pages in use."""
    request = bind(parse_spec(SPEC), tokenizer=None, vocab_size=VOCAB)
    batch.admit("a", request, [3, 1], 2)
    computed, count, mixtures, used, reports = 0, 2, [], [], []
    for number in range(steps):
        batch.begin(["a"], np.array([computed]), np.array([count]))
        if number:
            mixtures.append(fed(batch, 0))
        batch.commit(batch.decide(blocks(number)[None]).argmax(dim=1))
        totals = batch.totals()[0].tolist()
        reports.append((totals[0], totals[-1] == Phase.ANSWER))
        if number >= lag:
            batch.saw("a", *reports[number - lag], 0)
        computed, count = computed + count, 1
        used.append(batch.store.pages_in_use)
    return mixtures, used


def replay(batch, steps):
    """What is fed when a preempted request comes back."""
    batch.preempt("a")
    batch.resume("a", steps)
    batch.begin(["a"], np.array([0]), np.array([2 + steps]))
    return [fed(batch, 2 + number) for number in range(steps - 1)]


def same(mixture, token):
    return mixture in (None, ((token,), (1.0,)))


@pytest.mark.parametrize("lag", [0, 1, REWIND_STEPS])
@pytest.mark.parametrize("steps", [200, 281, 284, 305, 340])
def test_an_answer_needs_no_pages_until_thinking_is_opened_again(steps, lag):
    batch = make(max_tokens=500)
    mixtures, used = write_blocks(batch, steps, lag)
    mixed = [i for i, mixture in enumerate(mixtures) if mixture and len(mixture[0]) > 1]
    assert any(i < 20 for i in mixed)
    assert not any(20 <= i < 280 for i in mixed)
    # The page in which thinking ended, and the newest ones.
    assert max(used) <= 4
    if steps == 340:
        assert any(280 <= i < 300 for i in mixed)
        assert any(310 <= i < 330 for i in mixed)
    again = replay(batch, steps)
    for number, (before, now) in enumerate(zip(mixtures, again, strict=True)):
        token = int(blocks(number).argmax())
        assert before == now or (same(before, token) and same(now, token)), number
    assert not batch.failed
    batch.finish(["a"])
    assert batch.store.pages_in_use == 0


def test_an_answer_without_a_page_is_not_lost():
    batch = make(pages=1, max_tokens=500)
    write_blocks(batch, 200, 0)
    assert len(replay(batch, 200)) == 199
    assert not batch.failed
    batch = make(pages=1, max_tokens=500)
    # A second block without a page is.
    batch.store.give_back = lambda *arguments: None
    write_blocks(batch, 340, 0)
    replay(batch, 340)
    assert batch.failed == {"a": FORGOTTEN}


def test_other_uses_of_the_sampler_are_left_alone():
    batch = make()
    logits = torch.randn(3, VOCAB)
    assert batch.decide(logits) is logits
    assert batch.commit(torch.zeros(3)) is None
    request = bind(parse_spec(SPEC), tokenizer=None, vocab_size=VOCAB)
    batch.admit("a", request, [3, 1], 2)
    assert batch.decide(logits) is logits
