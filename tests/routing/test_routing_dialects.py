"""Other people's servers: their log-probabilities, their ends of texts, their defaults."""

import contextlib
import json
import math
import random

import pytest
import routing_fakes as shapes
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from routing_fakes import Served, fake_server
from routing_support import prompts, vocabulary
from test_routing_text import over, route

from tokenlens.routing import Ask, BackendError, Sampling, parse_routing
from tokenlens.routing.completions import Completions
from tokenlens.routing.logprobs import ShapeError, read
from tokenlens.routing.vocabulary import StepEnds

MIXED = {"policy": {"policy": "glimprouter", "threshold": 0.4}, "duplicate_guard": False}
KNOWN = [shapes.openai, shapes.sglang, shapes.llama, shapes.llama_shares, shapes.llama_before]


def ask(text="x", **fields):
    """A call for the next step."""
    return Ask("s", text, 10, Sampling(**fields), StepEnds.of(parse_routing({}), None))


@pytest.mark.parametrize("shape", KNOWN)
def test_every_shape_says_the_same(shape):
    generator = random.Random(3)
    for _ in range(50):
        weights = [generator.random() ** 3 for _ in range(generator.randint(1, 20))]
        top = {f"w{i}": math.log(w / sum(weights)) for i, w in enumerate(weights)}
        more, beside = shape("word", top, None)
        words, ranked = read(beside, more)
        assert words == ["word"]
        assert dict(ranked[0]) == pytest.approx(top, abs=1e-12)
        assert [value for _, value in ranked[0]] == sorted(top.values(), reverse=True)


@pytest.mark.parametrize(
    "facts",
    [
        {"odds": [1]}, "high", 7, {"tokens": ["a"], "top_logprobs": [[3]]}, [3],
        {"tokens": ["a"], "top_logprobs": [{"a": "likely"}]}, {"content": [{"top_logprobs": [1]}]},
        {"tokens": ["a"], "top_logprobs": [{"a": 700.0}]}, {"tokens": ["a"], "top_logprobs": 4},
    ],
)  # fmt: skip
def test_what_is_no_known_shape_is_said(facts):
    with pytest.raises(ShapeError):
        read({}, {"logprobs": facts})


@pytest.mark.parametrize(
    "facts",
    [None, {}, {"tokens": ["a"], "top_logprobs": None}, {"content": None}, {"content": []},
     {"tokens": ["a"], "top_logprobs": [None]}, {"tokens": ["a"], "top_logprobs": [{"a": None}]},
     {"tokens": ["a"], "top_logprobs": [{"a": math.nan}]}],
)  # fmt: skip
def test_no_alternatives_are_no_error(facts):
    assert not any(read({}, {"logprobs": facts})[1])


@pytest.fixture(scope="module")
def plain():
    """What the two models write over servers of OpenAI's shape."""
    return over_shape(shapes.openai)


def over_shape(shape, spec=MIXED):
    served = [Served(fake_server(role, shape)) for role in ("small", "large")]
    try:
        return route(over([one.url for one in served], spec), vocabulary().decode(prompts(2)[1]))
    finally:
        for one in served:
            one.close()


@pytest.mark.parametrize("shape", KNOWN[1:])
def test_a_server_of_every_shape_is_routed_to(plain, shape):
    found = over_shape(shape)
    assert (found.text, found.finish_reason) == (plain.text, plain.finish_reason)
    signals = [
        [s.signal for s in one.trace.steps if s.signal is not None] for one in (found, plain)
    ]
    assert signals[0] == pytest.approx(signals[1], abs=1e-6)
    assert 0 < found.trace.usage["large"].tokens < found.tokens


def test_an_unknown_shape_is_an_error_that_names_the_server():
    with pytest.raises(BackendError, match=r"small.*tiny-small.*odds") as caught:
        over_shape(shapes.unknown, {**MIXED, "fallback": False})
    assert caught.value.kind == "malformed"


def test_policies_that_need_no_probabilities_take_any_shape():
    assert over_shape(shapes.unknown, "always_large").tokens > 20


def fake(text, last):
    """A fake server: it writes a text in letters, and then the fields of its last event."""
    app = FastAPI()

    @app.post("/v1/completions")
    async def completions():
        def events():
            for letter in text:
                choice = {"text": letter, "finish_reason": None}
                yield f"data: {json.dumps({'choices': [choice]})}\n\n"
            yield f"data: {json.dumps({'choices': [{'text': '', **last}]})}\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    return app


ENDED = "<think>\n1+1=2"


@pytest.mark.parametrize(
    "last",
    [
        {"finish_reason": "stop", "matched_stop": 2},
        {"finish_reason": "stop", "matched_stop": "\n\n"},
        {"finish_reason": "stop", "stop_reason": 151645},
        {"finish_reason": "stop", "stop_reason": None},
        {"finish_reason": "eos_token"},
    ],
)
def test_the_end_of_a_text_inside_the_thinking_is_the_end(last):
    served = [Served(fake(ENDED, last)) for _ in range(2)]
    try:
        found = route(over([one.url for one in served], "always_small"), "x")
    finally:
        for one in served:
            one.close()
    assert (found.text, found.finish_reason) == (ENDED, "stop")


@pytest.mark.parametrize("api", ["vllm", "text"])
def test_whatever_an_event_holds_is_a_chunk_or_an_error_of_the_backend(api):
    made = Completions("small", "m", api)

    def chunks(choice, **event):
        event = {"choices": [{"text": "x", "token_ids": [5], **choice}], **event}
        return made.chunks(json.dumps(event), ask(), signals=True)

    (chunk,) = chunks({"finish_reason": {"type": "stop", "matched": 2}})
    assert chunk.finish == "eos"
    assert chunks({"finish_reason": {"type": "length", "length": 9}})[0].finish == "length"
    assert made.chunks('{"usage": {"total_tokens": 3}}', ask(), signals=True) == []
    values = [math.inf, math.nan, 10**400, -1, True, [], [[]], {}, {"a": {}}, "x", [math.inf]]
    for field in ("finish_reason", "logprobs", "token_ids", "text", "stop_reason"):
        for value in values:
            for inner in (value, {"tokens": value, "top_logprobs": [{"a": value}]}):
                # Any other error would be one of the router's own.
                with contextlib.suppress(BackendError):
                    chunks({field: inner})


def test_what_vllm_stops_at_and_what_ends_its_texts():
    """Several end tokens come as a number, a repetition as a word; only our texts end a step."""
    vllm = Completions("small", "m", "vllm")

    def finish(**last):
        choice = {"text": "x", "token_ids": [5], "logprobs": None, **last}
        (chunk,) = vllm.chunks(json.dumps({"choices": [choice]}), ask(), signals=False)
        return chunk.finish

    assert finish(finish_reason="stop", stop_reason="\n\n") == "stop"
    assert finish(finish_reason="stop", stop_reason=151643) == "eos"
    assert finish(finish_reason="stop", stop_reason="repetition_detected") == "eos"
    assert finish(finish_reason="length", stop_reason=None) == "length"
    assert finish(finish_reason=None) is None
    for reason in ("abort", "error", "content_filter", "tool_calls"):
        with pytest.raises(BackendError) as caught:
            finish(finish_reason=reason)
        assert caught.value.kind == "truncated"


@pytest.mark.parametrize("api", ["vllm", "text"])
def test_what_a_request_leaves_open_is_the_servers_to_decide(api):
    def body(**fields):
        made = Completions("small", "m", api).body(ask(**fields), "x", 10, signals=False)
        return {name: made[name] for name in ("temperature", "top_p", "top_k") if name in made}

    left = {"temperature": None, "top_p": None, "top_k": None}
    assert body(**left) == {}
    assert body(**{**left, "temperature": 0.7}) == {"temperature": 0.7}
    assert body(**{**left, "top_p": 0.9}) == {"top_p": 0.9}
    # off is something else than left open
    assert body(**{**left, "top_k": 0}) == {"top_k": -1}
    assert body(temperature=0.7, top_k=20) == {"temperature": 0.7, "top_p": 1.0, "top_k": 20}
    assert body() == {"temperature": 0.0, "top_p": 1.0}
