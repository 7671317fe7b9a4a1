"""Conditions that a server's own step watches, as they stand on the wire in both dialects."""

import json

import pytest

from tokenlens.errors import BackendError
from tokenlens.routing import Ask, Sampling
from tokenlens.routing.completions import Completions
from tokenlens.routing.facts import Trip
from tokenlens.routing.generations import Generations

WARM = Sampling(temperature=0.6, top_p=0.9)


def ask(how=WARM, **fields):
    return Ask("s", (1, 2), 8, how, trip=Trip(0.4), warped=True, **fields)


def dialect(kind):
    """One whose server was asked, and has the method."""
    if kind == "vllm":
        made = Completions("large", "tiny", "vllm")
        made.trips_in = "vllm_xargs"
    else:
        made = Generations("large", "tiny", "sglang")
        made.trips_in = "custom_params"
    return made


def sent(kind, asked):
    body = dialect(kind).body(asked, asked.context, 8, signals=False)
    return body["vllm_xargs"] if kind == "vllm" else body["sampling_params"]["custom_params"]


def answered(kind, tripped, ids=(5, 6, 2)):
    """An answer in one piece, whose last token is the tripwire's."""
    trace = {"tokenlens": {"tripped": tripped}}
    if kind == "vllm":
        choice = {"text": "", "token_ids": list(ids), "finish_reason": "stop", "logprobs": None}
        return json.dumps({"choices": [choice], "kv_transfer_params": trace})
    meta = {"finish_reason": {"type": "stop", "matched": 2}, "completion_tokens": len(ids)}
    return json.dumps({"output_ids": list(ids), "meta_info": {**meta, **trace}})


KINDS = pytest.mark.parametrize("kind", ["vllm", "sglang"])


@KINDS
def test_a_condition_is_asked_for_in_the_request_s_own_terms(kind):
    fields = sent(kind, ask())
    assert fields["tokenlens_tripwire.entropy"] == 0.4
    assert fields["tokenlens_tripwire.temperature"] == 0.6
    assert fields["tokenlens_tripwire.top_p"] == 0.9
    # A greedy request has no filters.
    assert "tokenlens_tripwire.top_p" not in sent(kind, ask(Sampling(temperature=0, top_p=0.9)))
    # Beside a spec of the request's own.
    both = sent(kind, ask(arguments={"tokenlens": "tiny-soft"}))
    assert both["tokenlens"] == "tiny-soft"
    assert both["tokenlens_tripwire.entropy"] == 0.4


@KINDS
def test_the_end_of_the_text_that_a_tripwire_wrote_is_no_part_of_it(kind):
    tripped = {"position": 4, "condition": "entropy", "value": 0.7}
    (chunk,) = dialect(kind).begin().chunks(answered(kind, tripped), ask(), signals=False)
    assert (chunk.ids, chunk.tokens, chunk.finish) == ((5, 6), 2, "trip")
    assert chunk.facts[-1].least_entropy == 0.7
    (chunk,) = dialect(kind).begin().chunks(answered(kind, tripped, (2,)), ask(), signals=False)
    assert (chunk.ids, chunk.tokens, chunk.finish) == ((), 0, "trip")
    # An end of the model's own is one.
    (chunk,) = dialect(kind).begin().chunks(answered(kind, None), ask(), signals=False)
    assert (chunk.ids, chunk.finish) == ((5, 6, 2), "eos")


@KINDS
@pytest.mark.parametrize(
    "tripped",
    [
        {"condition": "rank", "value": 1.0},
        {"condition": "entropy", "value": "nan"},
        {"condition": "entropy", "value": -1},
        {"condition": "entropy"},
        [1],
    ],
)
def test_a_trip_that_nobody_asked_for_is_malformed(kind, tripped):
    with pytest.raises(BackendError) as found:
        dialect(kind).begin().chunks(answered(kind, tripped), ask(), signals=False)
    assert found.value.kind == "malformed"


@KINDS
def test_a_server_that_was_not_asked_is_read_by_its_largest_entries(kind):
    other = dialect(kind)
    other.trips_in = None
    body = other.body(ask(facts=20), (1, 2), 8, signals=False)
    assert "tokenlens" not in json.dumps(body)
    tripped = {"position": 4, "condition": "entropy", "value": 0.7}
    plain = Ask("s", (1, 2), 8, WARM)
    (chunk,) = other.begin().chunks(answered(kind, tripped), plain, signals=False)
    assert chunk.finish == "eos"
