"""Specs bound for a server: what is kept of them is bounded, and what is refused is not kept."""

import pytest
from built_tokenizers import byte_level

from tokenlens.serving import arguments
from tokenlens.serving.binding import MAX_BOUND_BYTES, Binder
from tokenlens.spec import SpecError, parse_spec
from tokenlens.spec.texts import texts_of

PHASE = {"think_start": "<think>", "think_end": "</think>"}


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
