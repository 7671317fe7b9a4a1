"""Settings of a router: what is refused, and in which words."""

import json
import math

import pytest
from routing_support import Scripted, vocabulary

from tokenlens.routing import Router, parse_routing
from tokenlens.spec import SpecError


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("fastest", ["policy.policy", "'fastest'", "glimprouter", "always_large"]),
        (
            {"policy": {"policy": "glimprouter", "threshold": "high"}},
            ["policy.threshold", "'high'"],
        ),
        ({"policy": {"policy": "glimprouter", "threshold": math.nan}}, ["threshold", "nan"]),
        ({"policy": {"policy": "random", "share": 1.5}}, ["policy.share", "1.5", "at most 1"]),
        ({"policy": {"policy": "glimprouter", "treshold": 1.0}}, ["treshold", "unknown field"]),
        ({"step_tokens": 0}, ["step_tokens", "0", "at least 1"]),
        ({"answer": "both"}, ["answer", "'both'", "small"]),
        ({"delimiter": ""}, ["delimiter"]),
        (7, ["routing", "7", "glimprouter"]),
    ],
)
def test_bad_settings_name_the_field(data, words):
    with pytest.raises(SpecError) as caught:
        parse_routing(data)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_raw_entropy_needs_a_backend_that_gives_it():
    small = Scripted(lambda text: "")
    small.gives_full_entropy = False
    words = vocabulary()
    spec = {"policy": {"policy": "glimprouter", "entropy_of": "raw"}}
    with pytest.raises(SpecError, match=r"entropy_of.*topk"):
        Router(small, small, spec, small_vocabulary=words, large_vocabulary=words)


def test_texts_that_the_tokenizer_cannot_write_are_refused():
    backend, words = Scripted(lambda text: ""), vocabulary()
    for spec, field in (
        ({"policy": "speculative_thinking"}, "policy.recap_text"),
        ({"policy": "specreason"}, "policy.question"),
        ({"think_end": "<never>"}, "think_end"),
        ({"delimiter": "\u2042"}, "delimiter"),
    ):
        with pytest.raises(SpecError, match=field):
            Router(backend, backend, spec, small_vocabulary=words, large_vocabulary=words)


def test_infinite_thresholds_survive_json():
    for value in (math.inf, -math.inf):
        spec = parse_routing({"policy": {"policy": "glimprouter", "threshold": value}})
        again = parse_routing(json.loads(spec.model_dump_json()))
        assert again == spec
        assert again.policy.only == ("small" if value > 0 else "large")


def test_published_differs_where_the_docstring_says():
    default, published = (
        parse_routing({"policy": {"policy": "glimprouter", "profile": profile}}).policy
        for profile in ("default", "published")
    )
    changed = {
        name
        for name in type(default).model_fields
        if getattr(default, name) != getattr(published, name) and name != "profile"
    }
    assert changed == {"entropy_of", "probe", "probe_greedy", "comparison", "on_nan"}
