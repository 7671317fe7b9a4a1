"""The tripwire: each condition against plain Python, and what it does to a request."""

import math
import random

import pytest
import torch
from built_in import bind
from logit_support import END, EOS, MARKERS, PIECES, VOCAB, Bench

from tokenlens.core.columns import ALIVE
from tokenlens.errors import SpecError
from tokenlens.methods.tripwire import step
from tokenlens.spec import AnswerNow, DecodingSpec, SoftThinking, Tripwire, parse_spec
from tokenlens.trace.reports import tripped

CASES = 60


def tell(bench, row=0):
    """What a trace would say."""
    totals = {name: int(bench.get(column)[row]) for name, column in bench.core.totals.items()}
    return tripped(totals)


def plain(row, config):
    """The distribution that is looked at, in plain Python: probabilities, largest first."""
    values = sorted((float(v) / config.temperature for v in row), reverse=True)
    if config.top_k:
        values = values[: config.top_k]
    weights = [math.exp(v - values[0]) for v in values]
    total, passed, kept = sum(weights), 0.0, []
    for weight in weights:
        if config.top_p < 1 and passed >= config.top_p * total:
            break
        kept.append(weight)
        passed += weight
    return [weight / passed for weight in kept] + [0.0, 0.0]


def expected(row, config):
    """The condition that is met first, and its value."""
    p = plain(row, config)
    nats = -sum(one * math.log(one) for one in p if one > 0)
    if config.entropy is not None and nats >= config.entropy:
        return "entropy", nats
    if config.max_probability is not None and p[0] <= config.max_probability:
        return "max_probability", p[0]
    if config.margin is not None or config.second is not None:
        near = config.margin is None or p[0] - p[1] < config.margin
        if near and (config.second is None or p[1] > config.second):
            return "margin", p[0] - p[1]
    if config.token is not None:
        rank = 1 + sum(float(v) > float(row[config.token]) for v in row)
        if rank <= config.rank:
            return "rank", float(rank)
    return None


def drawn(chance):
    """A tripwire with random conditions."""
    some = {
        "entropy": chance.uniform(0.2, 3),
        "max_probability": chance.uniform(0.2, 0.9),
        "margin": chance.uniform(0.05, 0.6),
        "second": chance.uniform(0.05, 0.4),
        "token": chance.randrange(VOCAB),
    }
    asked = chance.sample(sorted(some), chance.randrange(1, 3))
    how = {
        "temperature": chance.choice([1.0, 0.6, 1.7]),
        "top_k": chance.choice([0, 0, 5, 40]),
        "top_p": chance.choice([1.0, 1.0, 0.9, 0.5]),
    }
    if "token" in asked:
        how["rank"] = chance.randrange(1, 6)
    return Tripwire(**{name: some[name] for name in asked}, **how)


@pytest.mark.parametrize("seed", range(CASES))
def test_conditions_are_those_of_plain_python(seed):
    chance = random.Random(seed)
    config = drawn(chance)
    logits = torch.randn(6, VOCAB, generator=torch.Generator().manual_seed(seed))
    logits *= chance.choice([0.5, 2.0, 4.0])
    bench = Bench(config, rows=6)
    before = logits.clone()
    bench.run(logits=logits)
    assert torch.equal(before, logits)
    for row in range(6):
        wanted, found = expected(logits[row], config), tell(bench, row)
        if wanted is None:
            assert found is None
            assert bool(bench.get(ALIVE)[row]) == (int(logits[row].argmax()) != EOS)
        else:
            assert (found.condition, found.position) == (wanted[0], 1)
            assert found.value == pytest.approx(wanted[1], abs=2e-6)
            assert not bench.get(ALIVE)[row]


def test_a_row_is_looked_at_in_one_way_whatever_its_neighbours_ask():
    logits = torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(3))
    found = []
    soft = SoftThinking(top_k=5, max_entries=5)
    for beside in (None, Tripwire(entropy=9, top_p=0.5), Tripwire(token=4), soft):
        bench = Bench(Tripwire(entropy=0.5), rows=2)
        if beside is not None:
            other = Bench(beside, rows=1)
            bench.core.add(1, other.core._request_of[0], [1])
        bench.run(logits=logits.expand(2, -1).clone())
        found.append(tell(bench))
    assert found[0] is not None
    assert len(set(map(str, found))) == 1


def test_it_trips_before_the_token_and_not_within_what_is_skipped():
    flat, sharp = torch.zeros(1, VOCAB), torch.zeros(1, VOCAB)
    sharp[0, 15] = 30.0
    bench = Bench(Tripwire(entropy=1.0, skip=2), prompt=(1, 15, 16))
    tokens = [int(bench.run(logits=one.clone())[0]) for one in (flat, sharp, sharp, flat)]
    assert tokens[1:] == [15, 15, EOS]
    assert tell(bench).position == 3 + 3
    # Without the method nothing ends it.
    bench = Bench(Tripwire(entropy=99.0))
    assert [int(bench.run(logits=flat.clone())[0]) for _ in range(3)] == [0, 0, 0]
    assert tell(bench) is None


def test_thinking_alone_is_watched_where_that_is_asked():
    bench = Bench(Tripwire(entropy=1.0, active="thinking"))
    bench.run(END, torch.zeros(1, VOCAB))
    assert tell(bench) is None, "the end was sampled by the engine in the place of ours"
    bench.run(logits=torch.zeros(1, VOCAB))
    assert tell(bench) is None


def test_a_token_that_the_engine_put_there_did_not_trip():
    bench = Bench(Tripwire(entropy=1.0))
    bench.run(15, torch.zeros(1, VOCAB))
    assert tell(bench) is None
    bench.run(logits=torch.zeros(1, VOCAB))
    assert tell(bench).position == 2


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_cannot_be_used_trip_nothing(bad):
    logits = torch.zeros(2, VOCAB)
    logits[0, 3] = bad
    bench = Bench(Tripwire(entropy=1.0), rows=2)
    bench.run(logits=logits)
    assert tell(bench, 0) is None
    assert tell(bench, 1).condition == "entropy"
    logits = torch.full((1, VOCAB), -torch.inf)
    bench = Bench(Tripwire(entropy=0.0, top_p=0.5, top_k=3))
    bench.run(logits=logits)
    assert tell(bench) is None


def test_a_forced_sequence_is_finished_first():
    bench = Bench(Tripwire(entropy=1.0), AnswerNow(after=1, text="a</think>"))
    flat, sharp = torch.zeros(1, VOCAB), torch.zeros(1, VOCAB)
    sharp[0, 15] = 30.0
    tokens = [int(bench.run(logits=one.clone())[0]) for one in (sharp, flat, flat, flat)]
    assert tokens == [15, 15, END, EOS]


def test_a_mixture_gives_way():
    logits = torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(1))
    bench = Bench(SoftThinking(top_k=5, max_entries=5), Tripwire(entropy=0.1))
    assert int(bench.run(logits=logits)[0]) == EOS
    assert tell(bench).condition == "entropy"


def test_what_it_cannot_be_asked():
    (plain,) = parse_spec({"methods": [{"method": "tripwire"}]}).methods
    assert (plain.entropy, Tripwire(margin=0.1).entropy) == (0.672, None)
    for fields, words in (
        ({"entropy": None}, "at least one of entropy"),
        ({"entropy": -1}, "entropy"),
        ({"max_probability": 1.5}, "max_probability"),
        ({"entropy": 1, "rank": 3}, "a token beside rank"),
        ({"margin": 0.1, "top_p": 0}, "top_p"),
        ({"entropy": math.nan}, "entropy"),
    ):
        with pytest.raises(SpecError, match=words):
            parse_spec({"methods": [{"method": "tripwire", **fields}]})
    with pytest.raises(SpecError, match=r"tripwire\.token: got 9999"):
        Bench(Tripwire(token=9999))
    with pytest.raises(SpecError, match="min_tokens: got 3; allowed: 0 beside tripwire"):
        parse_spec({"methods": [{"method": "tripwire", "entropy": 1}]}).refuse_least(
            "min_tokens", 3
        )
    parse_spec({"methods": [{"method": "top_h"}]}).refuse_least("min_tokens", 3)


def test_a_request_that_nothing_ends_is_refused():
    spec = DecodingSpec(methods=[Tripwire(entropy=1.0)], phase=MARKERS)
    with pytest.raises(SpecError, match="leave ignore_eos out"):
        bind(spec, tokenizer=PIECES, vocab_size=VOCAB, eos_ids=[])


def test_ranks_of_equal_tokens():
    logits = torch.tensor([[1.0, 3.0, 3.0, 2.0]]).expand(4, -1)
    assert step.rank_of(logits, torch.arange(4)).tolist() == [4, 1, 1, 3]
