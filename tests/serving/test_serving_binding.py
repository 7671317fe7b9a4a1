"""Specs bound for a server: what is kept of them is bounded, and what is refused is not kept."""

import asyncio
import threading

import pytest
from built_tokenizers import byte_level

from tokenlens.serving import arguments
from tokenlens.serving.arguments import FOUND_KEY
from tokenlens.serving.binding import MAX_BOUND_BYTES, Binder
from tokenlens.serving.off_loop import off_loop
from tokenlens.spec import SpecError, parse_spec
from tokenlens.spec.text_index import TextIndex
from tokenlens.spec.texts import texts_of

PHASE = {"think_start": "<think>", "think_end": "</think>"}


def worker_of(tokenizer):
    """A worker's binder, on an engine whose requests are their arguments and end at nothing."""
    return Binder(tokenizer, 2000, arguments=lambda params: params)


@pytest.fixture(scope="module")
def binder():
    return Binder(byte_level(), 2000)


def spec(*words, seed=0, method="nowait"):
    methods = [{"method": method, "words": list(words)}]
    return parse_spec({"methods": methods, "phase": PHASE, "seed": seed})


def test_refused_specs_leave_nothing_behind(binder):
    before = len(binder._bound), binder._bound.num_bytes
    for n in range(100):
        with pytest.raises(SpecError):
            binder.bind(spec(f"zebra{n}"), ())
        with pytest.raises(SpecError):
            binder.bind(spec(f"zebra{n}", method="tip"), ())
    assert (len(binder._bound), binder._bound.num_bytes) == before


def test_accepted_specs_are_kept_within_bounds(binder):
    for n in range(binder._bound.max_entries + 40):
        binder.bind(spec("wait", f"zebra{n}"), ())
    assert len(binder._bound) == binder._bound.max_entries
    assert binder._bound.num_bytes <= MAX_BOUND_BYTES
    one, other = (binder.bind(spec("wait", "zebra99", seed=n), ()) for n in (1, 2))
    assert one.found is other.found


def test_texts_are_made_when_a_server_starts():
    tokenizer = byte_level()
    made = Binder(tokenizer, 2000)
    assert {"contents", "index", "stripped"} <= set(texts_of(tokenizer, made.vocab_size).made)


def test_parsed_texts_are_kept_within_bounds_and_refused_ones_not_at_all():
    kept = arguments._PARSED
    before = len(kept)
    for n in range(100):
        with pytest.raises(SpecError):
            arguments.spec_of({"tokenlens": f'{{"methods": [{{"method": "zebra{n}"}}]}}'})
    assert len(kept) == before
    for n in range(400):
        padding = " " * 60_000
        arguments.spec_of({"tokenlens": f'{{"seed": {n}}}{padding}'})
    assert len(kept) <= kept.max_entries
    assert kept.num_bytes <= kept.max_bytes


def test_what_a_front_end_found_travels_and_is_not_searched_for_again(binder, monkeypatch):
    asked = {"tokenlens": spec("wait").model_dump_json(), "other": 1}
    request = binder.bind(spec("wait"), ())
    sent = binder.found(asked, request)
    assert sent == {**asked, FOUND_KEY: {"nowait.words": list(request.found["nowait.words"])}}
    assert binder.found(asked, None) == asked
    worker = worker_of(byte_level())
    monkeypatch.setattr(TextIndex, "holding", lambda *_, **__: pytest.fail("a search"))
    assert worker(sent).columns == request.columns


@pytest.mark.parametrize("found", ["text", [1], {"nowait.words": [5000]}, {"nowait.words": "1"}])
def test_a_worker_checks_what_travelled(found):
    asked = {"tokenlens": spec("wait").model_dump_json(), FOUND_KEY: found}
    with pytest.raises(SpecError, match="found"):
        worker_of(byte_level())(asked)


def test_only_our_front_end_says_what_was_found():
    with pytest.raises(SpecError, match="it is ours"):
        arguments.refuse_internal({"tokenlens": "tiny-soft", FOUND_KEY: {}})


def test_flat_fields_and_mappings_are_read_once(monkeypatch):
    asked = {"tokenlens": {"methods": [{"method": "tip"}]}, "tokenlens_tip.penalty": 2.5}
    first = arguments.spec_of(asked)
    assert first.methods[0].penalty == 2.5
    monkeypatch.setattr(arguments, "_spec_of", lambda _: pytest.fail("read again"))
    assert arguments.spec_of(asked) is first


def test_texts_that_differ_are_not_taken_for_one_another():
    read = [
        arguments.spec_of({"tokenlens_tip.penalty": 2.0, "tokenlens_tip.duration": 2}),
        arguments.spec_of({"tokenlens_tip.penalty": 2, "tokenlens_tip.duration": 3}),
    ]
    assert [one.methods[0].duration for one in read] == [2, 3]
    for wrong in (2.0, "2", True):
        with pytest.raises(SpecError, match=r"duration"):
            arguments.spec_of({"tokenlens_tip.penalty": 2.0, "tokenlens_tip.duration": wrong})


def test_work_off_the_loop_is_another_thread_s_and_raises_what_it_raises():
    names = []

    async def run():
        await off_loop(lambda: names.append(threading.current_thread().name))
        with pytest.raises(SpecError):
            await off_loop(lambda: parse_spec({"x": 1}))

    asyncio.run(run())
    assert names[0].startswith("tokenlens-binding")
